"""A full cluster that no other test sees, for the tests that take one down or kill it.

It has a folder and a network namespace of its own, so that interface, rules and ports, which there is one of on a
machine, do not meet those of the cluster that the other tests use. The built programs are shared.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import containers, processes
from tests.cluster.network import tool
from tests.cluster.paths import SOURCE, State, cache_root

PROJECT = SOURCE.parent.parent


class IsolatedCluster:
    """Runs the command line of the cluster in the namespace."""

    def __init__(self, cache: Path, namespace: str) -> None:
        self.cache, self.namespace = cache, namespace
        self.state = State(cache / "finetune-operator" / "cluster")

    def inside(self, *command: str, stdin: str | None = None) -> str:
        """Runs a program in the network namespace; its output. Raises AssertionError with what it said on failure."""
        done = self._run(command, stdin)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _run(self, command: Sequence[str], stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.namespace}", *command],
            input=stdin,
            cwd=PROJECT,
            env={**os.environ, "XDG_CACHE_HOME": str(self.cache)},
            capture_output=True,
            text=True,
            check=False,
        )

    def complaint(self, *arguments: str) -> str:
        """What `python -m tests.cluster ...` says when it must fail."""
        done = self._run([sys.executable, "-m", "tests.cluster", *arguments])
        assert done.returncode == 1, f"{arguments} ended with {done.returncode}: {done.stdout}"
        return done.stderr

    def cluster(self, *arguments: str, stdin: str | None = None) -> str:
        """`python -m tests.cluster ...` inside."""
        return self.inside(sys.executable, "-m", "tests.cluster", *arguments, stdin=stdin)

    def everything_alive(self) -> list[int]:
        """The pids of all that belongs to the cluster: components, shims, containers."""
        components = [process.pid for process in processes.recorded(self.state.run) if process.alive]
        return components + containers.shims(self.state) + containers.pod_processes(self.state)

    def kill_everything(self) -> None:
        """What a power cut does to processes."""
        for pid in self.everything_alive():
            processes.signal_pid(pid, signal.SIGKILL)

    def interfaces(self) -> set[str]:
        """The network interfaces in the namespace."""
        return {str(link["ifname"]) for link in json.loads(self.inside("ip", "-json", "link"))}

    def rules(self) -> str:
        """The nftables rules in the namespace."""
        return self.inside("nft", "list", "ruleset")


@contextmanager
def isolated_cluster() -> Iterator[IsolatedCluster]:
    """A namespace and a folder for one cluster, not started yet; all gone at the end."""
    # Not pytest's tmp_path: containerd's socket must fit into 107 characters.
    cache = Path(tempfile.mkdtemp(prefix="ft-"))
    namespace = cache.name
    (cache / "finetune-operator").mkdir()
    (cache / "finetune-operator" / "bin").symlink_to(cache_root() / "bin")
    tool("ip", "netns", "add", namespace)
    isolated = IsolatedCluster(cache, namespace)
    try:
        isolated.inside("ip", "link", "set", "lo", "up")
        yield isolated
    finally:
        isolated.cluster("down", "--purge")
        tool("ip", "netns", "delete", namespace)
        shutil.rmtree(cache)
