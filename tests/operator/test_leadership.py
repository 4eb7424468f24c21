"""Two operators on one real API server: one works, the other waits, and takes over when it may."""

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from tests.builders import a_body
from tests.cluster.light import LightCluster, free_port
from tests.operator.operator_process import Kubectl, eventually, running_operator

pytestmark = pytest.mark.api_server
LEASE = ("lease", "the-one", "-n", "default")


@contextmanager
def an_operator(light: LightCluster, folder: Path) -> Iterator[tuple[Popen[bytes], int]]:
    port = free_port()
    with running_operator(light.kubeconfig, folder, port, leaseName="the-one") as process:
        yield process, port


def answer(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_second_operator_waits_and_takes_over_from_one_that_is_killed(
    light_cluster: LightCluster, kubectl: Kubectl, tmp_path: Path
) -> None:
    with an_operator(light_cluster, tmp_path) as (first, port):
        eventually(lambda: answer(port, "readyz") == 200)
        with an_operator(light_cluster, tmp_path) as (_, other):
            eventually(lambda: answer(other, "healthz") == 200)
            time.sleep(3)
            assert answer(other, "readyz") == 503, "two operators work at the same time"
            first.kill()
            eventually(lambda: answer(other, "readyz") == 200, 40)
            kubectl.apply(a_body("taken-over"))
            eventually(lambda: kubectl.get("jobs", "-n", "team-a")["items"])


def test_an_operator_that_is_told_to_leave_hands_over_at_once(
    light_cluster: LightCluster, kubectl: Kubectl, tmp_path: Path
) -> None:
    with an_operator(light_cluster, tmp_path) as (first, port):
        eventually(lambda: answer(port, "readyz") == 200, 40)
        first.terminate()
        assert first.wait(25) == 0
        assert "holderIdentity" not in kubectl.get(*LEASE)["spec"]
        with an_operator(light_cluster, tmp_path) as (_, other):
            eventually(lambda: answer(other, "readyz") == 200, 10)


def test_an_operator_whose_lease_is_taken_leaves_within_ten_seconds(
    light_cluster: LightCluster, kubectl: Kubectl, tmp_path: Path
) -> None:
    with an_operator(light_cluster, tmp_path) as (loser, port):
        eventually(lambda: answer(port, "readyz") == 200, 40)
        kubectl("patch", *LEASE, "--type=merge", "-p", '{"spec":{"holderIdentity":"somebody else"}}')
        assert loser.wait(10) == 3


def test_an_operator_that_waits_leaves_when_told_to(
    light_cluster: LightCluster, kubectl: Kubectl, tmp_path: Path
) -> None:
    kubectl("patch", *LEASE, "--type=merge", "-p", '{"spec":{"holderIdentity":"somebody else"}}')
    with an_operator(light_cluster, tmp_path) as (waiting, port):
        eventually(lambda: answer(port, "healthz") == 200)
        waiting.terminate()
        assert waiting.wait(25) == 0
