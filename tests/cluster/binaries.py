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
import time
from collections.abc import Iterator
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

FLAGS = ["-trimpath", "-mod=readonly", "-ldflags", "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3"]
"""-s -w leave out the debugger's tables (a third of the file); the version is what the API server reports."""

TARGETS = {"kube": ".", "versitygw": "github.com/versity/versitygw/cmd/versitygw"}
"""File -> Go package."""

PROGRESS_SECONDS = 10.0
"""How often a line is printed where the output is not a terminal."""


def input_hash() -> str:
    """16 hex digits over all that goes into the programs: the module's files, the flags, the machine's kind."""
    digest = sha256(repr((FLAGS, TARGETS, platform.machine())).encode())
    for path in sorted(MODULE.iterdir()):
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
            _compile(go, package, Path(scratch) / name)
        for name in NAMES:
            (Path(scratch) / name).symlink_to("kube")
        (Path(scratch) / "complete").touch()
        Path(scratch).chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        # Renamed whole, so that nobody ever sees a folder with half of the programs.
        os.rename(scratch, folder)
        Path(scratch).mkdir()  # The context manager wants something to remove.


def _compile(go: Path, package: str, target: Path) -> None:
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
    with subprocess.Popen(
        command, cwd=MODULE, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = _show_progress(target.name, process.stderr)
    if process.returncode != 0:
        raise ClusterProblem(f"`{' '.join(command)}` in {MODULE} failed:\n" + "\n".join(said[-12:]))


def _show_progress(name: str, lines: Iterator[str]) -> list[str]:
    """Counts modules fetched and packages compiled as `go build -v` names them; returns what else it said."""
    started = last = time.monotonic()
    modules = packages = 0
    said: list[str] = []
    terminal = sys.stderr.isatty()
    for line in lines:
        words = line.split()
        if line.startswith("go: downloading"):
            modules += 1
        elif len(words) == 1 and not line.startswith("#"):
            packages += 1
        else:
            said.append(line.rstrip())
        now = time.monotonic()
        if now - last > (0.5 if terminal else PROGRESS_SECONDS):
            last = now
            _print_progress(name, modules, packages, now - started, terminal)
    _print_progress(name, modules, packages, time.monotonic() - started, terminal, final=True)
    return said


def _print_progress(
    name: str, modules: int, packages: int, seconds: float, terminal: bool, *, final: bool = False
) -> None:
    text = f"  {name}: {modules} modules fetched, {packages} packages compiled, {seconds:.0f} s"
    print(f"\r{text}" if terminal else text, end="" if terminal and not final else "\n", file=sys.stderr, flush=True)
