"""Where the local cluster keeps its things: every file it writes lies below `cache_root()` or a given folder."""

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
"""This package's folder: the Go module and the manifests lie in it."""


def cache_root() -> Path:
    """The project's folder in the user's cache: $XDG_CACHE_HOME or ~/.cache, then `finetune-operator`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"


@dataclass(frozen=True)
class State:
    """The folder of one cluster and the places in it."""

    root: Path

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def run(self) -> Path:
        """Process ids, sockets and kubeconfigs: all that is about the processes running now."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def pod_logs(self) -> Path:
        return self.root / "pod-logs"

    @property
    def containerd(self) -> Path:
        """Images and snapshots; the only folder that outlives `down`, so that images are loaded once."""
        return self.root / "containerd"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.root / "kubeconfig"

    @property
    def cgroup(self) -> str:
        """The control group that all pods live in: by it a dead kubelet's pods are found again."""
        return f"finetune-{sha256(str(self.root).encode()).hexdigest()[:8]}"


def cluster_state() -> State:
    """The state of the one full cluster of this machine."""
    return State(cache_root() / "cluster")
