"""The parts of the local cluster that need no cluster: checks, hashes, processes, the pause image."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.cluster import binaries, golang, packages, processes
from tests.cluster.containers import write_pause_archive
from tests.cluster.locks import locked
from tests.cluster.paths import SOURCE, State
from tests.cluster.problem import ClusterProblem


def test_a_missing_program_is_reported_by_its_package_and_the_command_to_type() -> None:
    with pytest.raises(ClusterProblem, match=r"Missing Debian package: frobnicator\. Type: .*apt-get install .*frob"):
        packages.require_packages({"no-such-program": "frobnicator", "sh": "dash"})


def test_present_programs_are_not_reported() -> None:
    assert packages.missing_packages({"sh": "dash", "/bin/sh": "dash"}) == []


def test_the_hash_follows_every_input_file(tmp_path: Path) -> None:
    hashes = []
    for name, text in (("main.go", "package main"), ("go.mod", "module x"), ("go.mod", "module y")):
        (tmp_path / name).write_text(text)
        hashes.append(binaries.input_hash(tmp_path))
    assert len(set(hashes)) == 3
    assert hashes[-1] == binaries.input_hash(tmp_path)


def test_the_progress_of_a_build_is_counted_and_errors_are_kept() -> None:
    progress = binaries.Progress()
    progress.read(
        ["go: downloading example.com/a v1.0.0\n", "example.com/a\n", "# example.com/b\n", "b.go:1: no such x\n"]
    )
    assert (progress.modules, progress.packages) == (1, 1)
    assert progress.said == ["# example.com/b", "b.go:1: no such x"]


def test_the_module_says_which_go_it_needs() -> None:
    assert golang.wanted_version() >= (1, 26, 0)


def test_a_program_that_is_no_go_has_version_zero() -> None:
    assert golang.version_of(Path("/bin/true")) == (0, 0, 0)


def test_a_stopped_process_is_found_by_its_record_and_gone(tmp_path: Path) -> None:
    process = processes.start("sleeper", ["sleep", "600"], run=tmp_path, log=tmp_path / "log", cwd=tmp_path)
    assert processes.recorded(tmp_path) == [process]
    assert process.alive
    processes.stop([process])
    assert not process.alive


def test_a_process_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    deaf = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]
    process = processes.start("deaf", deaf, run=tmp_path, log=tmp_path / "log", cwd=tmp_path)
    assert processes.wait_until(lambda: (tmp_path / "log").read_text() == "ready\n", 10)
    processes.stop([process], ask_seconds=0.2)
    assert not process.alive


def test_a_number_used_again_is_not_killed(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        (tmp_path / "old.pid").write_text(f"{stranger.pid} 1\n")
        processes.stop(processes.recorded(tmp_path))
        assert stranger.poll() is None
        stranger.send_signal(signal.SIGKILL)


def test_a_component_that_dies_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = processes.start("dying", ["sh", "-c", "echo no such flag; exit 1"], run=tmp_path, log=log, cwd=tmp_path)
    with pytest.raises(ClusterProblem, match=r"(?s)The thing stopped\. .*no such flag"):
        processes.wait_for("The thing", lambda: False, 10, process, log)


def test_a_lock_that_is_held_is_refused_with_what_goes_on(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", "the build"),
        pytest.raises(ClusterProblem, match="the build has been going on"),
        locked(tmp_path / "lock", "the build", seconds=0),
    ):
        pytest.fail("two at once")


def test_shared_locks_go_together(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock, "use", shared=True), locked(lock, "use", shared=True, seconds=0):
        assert lock.exists()


def test_the_pause_image_holds_the_program_and_its_digest(tmp_path: Path) -> None:
    write_pause_archive(tmp_path / "image.tar", b"program")
    with tarfile.open(tmp_path / "image.tar") as image:
        names = image.getnames()
        config = image.extractfile("config.json")
        assert config is not None
        diff_ids = json.load(config)["rootfs"]["diff_ids"]
    assert names == ["layer.tar", "config.json", "manifest.json"]
    assert len(diff_ids[0]) == len("sha256:") + 64


def test_each_state_folder_has_its_own_control_group() -> None:
    assert State(Path("/a")).cgroup != State(Path("/b")).cgroup


def test_without_root_the_first_word_is_about_root() -> None:
    # Imported before the rights go: a clone may lie in a home that nobody else may read.
    drop = "import os; os.geteuid() or os.setuid(65534)"
    program = f"from tests.cluster.packages import require_root; {drop}; require_root()"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SOURCE.parent.parent, capture_output=True, text=True, check=False
    )
    assert "The local cluster needs root, for its node's containers and network: run it with sudo." in done.stderr


def test_a_problem_is_one_message_without_a_stack_trace(tmp_path: Path) -> None:
    done = run_cluster("kubectl", "get", "pods", cache=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "The local cluster is not running. Type: python -m tests.cluster up\n"


def test_status_of_nothing_says_down(tmp_path: Path) -> None:
    done = run_cluster("status", cache=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("down\n") == 8


def test_a_log_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "finetune-operator" / "cluster" / "logs").mkdir(parents=True)
    (tmp_path / "finetune-operator" / "cluster" / "logs" / "etcd.log").write_text("words\n")
    assert run_cluster("logs", "kubelte", cache=tmp_path).stderr == "kubelte has no log: one of etcd.\n"
    assert run_cluster("logs", "etcd", cache=tmp_path).stdout == "words\n"


def run_cluster(*arguments: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"XDG_CACHE_HOME": str(cache)} if cache else {})}
    command = [sys.executable, "-m", "tests.cluster", *arguments]
    return subprocess.run(
        command, cwd=SOURCE.parent.parent, env=environment, capture_output=True, text=True, check=False
    )
