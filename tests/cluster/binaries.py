"""Builds the Go programs once and keeps them in the user's cache under a hash of what they were built from.

`kube` is Kubernetes, etcd, CoreDNS, kubectl and Helm in one file; it becomes what it is called. `versitygw` is S3.
Both come from the one Go module in `go/`, pinned by go.mod and go.sum, so that common packages compile once.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from tests.cluster.golang import go_program
from tests.cluster.locks import locked
from tests.cluster.paths import SOURCE, cache_root
from tests.cluster.problem import ClusterProblem

MODULE = SOURCE / "go"
"""The Go module; only the files that Go reads are in it."""

NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns",
         "kubectl", "helm")  # fmt: skip
"""What `kube` can be called."""

VERSIONS = {
    "k8s.io/component-base/version.gitVersion": "v1.36.3",
    "helm.sh/helm/v4/internal/version.version": "v4.3.1",
}
"""Go variable -> what the program says when it is asked for its version."""

FLAGS = [
    "-trimpath",
    "-mod=readonly",
    "-ldflags",
    " ".join(["-s -w", *(f"-X {variable}={value}" for variable, value in VERSIONS.items())]),
]
"""-s -w leave out the debugger's tables, a third of the file."""

TARGETS = {"kube": ".", "versitygw": "github.com/versity/versitygw/cmd/versitygw"}
"""File -> Go package."""

PROGRESS_SECONDS = 10.0
"""How often a line is printed where the output is not a terminal."""


def input_hash(module: Path = MODULE) -> str:
    """16 hex digits over all that goes into the programs: the module's files, the flags, the machine's kind."""
    digest = sha256(repr((FLAGS, TARGETS, platform.machine())).encode())
    for path in sorted(module.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def binary_folder() -> Path:
    """Where the programs for the present inputs lie, built or not."""
    return cache_root() / "bin" / input_hash()


def built_binaries() -> Path:
    """The folder with `kube`'s names and `versitygw`, built first if need be (minutes, with progress)."""
    folder = binary_folder()
    if not (folder / "complete").exists():
        with locked(cache_root() / "bin.lock", "the build of the Kubernetes programs", seconds=3600):
            if not (folder / "complete").exists():
                _build(folder)
    return folder


def _build(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    go = go_program(cache_root())
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for name, package in TARGETS.items():
            compile_program(go, MODULE, package, Path(scratch) / name)
        for name in NAMES:
            (Path(scratch) / name).symlink_to("kube")
        (Path(scratch) / "complete").touch()
        Path(scratch).chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        # Renamed whole, so that nobody ever sees a folder with half of the programs.
        os.rename(scratch, folder)
        Path(scratch).mkdir()  # The context manager wants something to remove.


def compile_program(go: Path, module: Path, package: str, target: Path) -> None:
    """Builds a package of a Go module, with progress. Raises ClusterProblem with the last lines that Go wrote."""
    command = [str(go), "build", "-v", *FLAGS, "-o", str(target), package]
    # GOWORK and GOFLAGS of the user's own would change what is built.
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOWORK": "off",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-buildvcs=false",
    }
    print(f"Building {target.name} from its Go modules; kept in {target.parent.parent}.", file=sys.stderr, flush=True)
    progress = Progress()
    with subprocess.Popen(
        command, cwd=module, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        reader = threading.Thread(target=progress.read, args=(process.stderr,))
        reader.start()
        _show(progress, reader, target.name)
    if process.returncode != 0:
        raise ClusterProblem(f"`{' '.join(command)}` in {module} failed:\n" + "\n".join(progress.said[-12:]))


@dataclass
class Progress:
    """What `go build -v` has done so far, by the lines it writes."""

    modules: int = 0
    packages: int = 0
    said: list[str] = field(default_factory=list)
    """Everything that is no progress: errors, as a rule."""

    def read(self, lines: Iterable[str]) -> None:
        """Counts until the lines end."""
        for line in lines:
            if line.startswith("go: downloading"):
                self.modules += 1
            elif len(line.split()) == 1:
                self.packages += 1
            else:
                self.said.append(line.rstrip())


def _show(progress: Progress, reader: threading.Thread, name: str) -> None:
    """Says how far the build is until it ends; also while Go is silent: it links for half a minute."""
    started = time.monotonic()
    terminal = sys.stderr.isatty()
    while True:
        reader.join(0.5 if terminal else PROGRESS_SECONDS)
        seconds = time.monotonic() - started
        text = f"  {name}: {progress.modules} modules fetched, {progress.packages} packages compiled, {seconds:.0f} s"
        end = "" if terminal and reader.is_alive() else "\n"
        print(f"\r{text}" if terminal else text, end=end, file=sys.stderr, flush=True)
        if not reader.is_alive():
            return
