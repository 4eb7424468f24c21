"""The API server without a node: it answers, it has controllers, and it leaves nothing behind."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.light import LightCluster, light_api_server
from tests.cluster.paths import SOURCE
from tests.cluster.processes import recorded, started_at, wait_until

pytestmark = pytest.mark.api_server

HOLD = """
import sys, time
from pathlib import Path
from tests.cluster.light import light_api_server
with light_api_server(Path(sys.argv[1])):
    print("up", flush=True)
    time.sleep(600)
"""
"""A program that keeps an API server until it is killed."""


def kubectl(light: LightCluster, *arguments: str) -> str:
    command = [str(light.binary("kubectl")), "--kubeconfig", str(light.kubeconfig), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_controllers_make_the_pod_of_a_job(light_cluster: LightCluster) -> None:
    kubectl(light_cluster, "create", "job", "one", "--image=none")
    selector = ("get", "pods", "--selector=job-name=one", "--output=json")
    assert wait_until(lambda: len(json.loads(kubectl(light_cluster, *selector))["items"]) == 1, 30)


def test_owned_objects_go_with_their_owner(light_cluster: LightCluster) -> None:
    kubectl(light_cluster, "create", "configmap", "owner")
    uid = kubectl(light_cluster, "get", "configmap", "owner", "--output=jsonpath={.metadata.uid}")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}
    kubectl(light_cluster, "create", "configmap", "owned")
    patch = json.dumps({"metadata": {"ownerReferences": [reference]}})
    kubectl(light_cluster, "patch", "configmap", "owned", "--patch", patch)
    kubectl(light_cluster, "delete", "configmap", "owner")
    assert wait_until(lambda: "owned" not in kubectl(light_cluster, "get", "configmaps", "--output=name"), 30)


def test_two_at_once_do_not_see_each_other(light_cluster: LightCluster, tmp_path: Path) -> None:
    with light_api_server(tmp_path) as other:
        kubectl(other, "create", "namespace", "only-here")
        assert "only-here" not in kubectl(light_cluster, "get", "namespaces", "--output=name")


def test_nothing_is_left_at_the_end(tmp_path: Path) -> None:
    with light_api_server(tmp_path):
        pids = [process.pid for process in recorded(tmp_path / "run")]
    assert len(pids) == 3
    assert [pid for pid in pids if started_at(pid) is not None] == []
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name != "kubeconfig") == [".log"] * 3


def test_it_dies_with_a_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=SOURCE.parent.parent, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        pids = [process.pid for process in recorded(tmp_path / "run")]
        parent.send_signal(signal.SIGKILL)
    assert len(pids) == 3
    assert wait_until(lambda: all(started_at(pid) is None for pid in pids), 10)
