"""The full cluster from nothing to nothing, and back after a crash. Needs root; disturbs no other cluster."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import containers
from tests.cluster.binaries import built_binaries
from tests.cluster.packages import NODE, missing_packages
from tests.local_cluster.isolated import IsolatedCluster, isolated_cluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
    pytest.mark.skipif(bool(missing_packages(NODE)), reason="Debian packages are missing: see `up`"),
]

JOB = (Path(__file__).parent / "job.yaml").read_text()
"""A web server with a Service, and a Job that resolves its name and fetches its page, holding all four GPUs."""


@pytest.fixture(scope="module")
def isolated() -> Iterator[IsolatedCluster]:
    built_binaries()
    with isolated_cluster() as cluster:
        yield cluster


def run_the_job(isolated: IsolatedCluster) -> str:
    """Applies JOB and waits for its end; returns what it printed."""
    isolated.cluster("kubectl", "apply", "-f", "-", stdin=JOB)
    isolated.cluster("kubectl", "wait", "--for=condition=Complete", "job/visitor", "--timeout=60s")
    return isolated.cluster("kubectl", "logs", "job/visitor")


def test_a_job_with_gpus_runs_and_finds_a_service_by_name(isolated: IsolatedCluster) -> None:
    isolated.cluster("up")
    assert "hello from the web pod" in run_the_job(isolated)


def test_a_second_up_leaves_the_running_cluster_alone(isolated: IsolatedCluster) -> None:
    isolated.cluster("up")
    before = isolated.everything_alive()
    isolated.cluster("up")
    assert isolated.everything_alive() == before


def test_a_pod_has_no_way_off_the_machine(isolated: IsolatedCluster) -> None:
    isolated.cluster("up")
    rules = isolated.rules()
    assert 'iifname "finetune0" oifname != "finetune0" drop' in rules


def test_status_names_every_component_and_the_node(isolated: IsolatedCluster) -> None:
    isolated.cluster("up")
    status = isolated.cluster("status")
    assert status.count(" up ") == 8
    assert "Ready" in status
    assert '"nvidia.com/gpu":"4"' in status


def test_logs_shows_what_a_component_wrote(isolated: IsolatedCluster) -> None:
    isolated.cluster("up")
    assert "kubelet" in isolated.cluster("logs", "kubelet", "--lines", "500")


def test_down_leaves_no_process_mount_interface_rule_or_control_group(isolated: IsolatedCluster) -> None:
    isolated.cluster("up")
    run_the_job(isolated)
    isolated.cluster("down")
    assert isolated.everything_alive() == []
    assert containers.mounts_below(isolated.state.root) == []
    assert isolated.interfaces() == {"lo"}
    assert isolated.rules() == ""
    assert [folder for folder in containers.cgroup_folders(isolated.state) if folder.exists()] == []


def test_up_works_after_everything_was_killed(isolated: IsolatedCluster) -> None:
    isolated.cluster("up")
    run_the_job(isolated)
    isolated.kill_everything()
    isolated.cluster("up")
    assert isolated.cluster("kubectl", "get", "pods", "--no-headers") == ""
    assert "hello from the web pod" in run_the_job(isolated)


def test_an_interface_of_somebody_else_is_left_alone(isolated: IsolatedCluster) -> None:
    isolated.cluster("down")
    isolated.inside("ip", "link", "add", "finetune0", "type", "bridge")
    try:
        assert "The interface finetune0 belongs to another local cluster" in isolated.complaint("up")
        isolated.cluster("down")
        assert "finetune0" in isolated.interfaces()
    finally:
        isolated.inside("ip", "link", "delete", "finetune0")


def test_an_image_outlives_down(isolated: IsolatedCluster) -> None:
    isolated.cluster("up")
    before = containers.ctr(isolated.state, "images", "ls", "--quiet")
    containers.ctr(isolated.state, "images", "tag", "localhost/pause:local", "localhost/kept:1")
    isolated.cluster("down")
    isolated.cluster("up")
    assert "localhost/kept:1" not in before
    assert "localhost/kept:1" in containers.ctr(isolated.state, "images", "ls", "--quiet").split()
