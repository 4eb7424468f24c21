"""Builds an image's layers as folders, each named by a digest of all that goes into it. Needs root and overlayfs.

A layer that is there is never built again: the name says that nothing it depends on has changed. Limits: what a RUN
step fetches is not in its name, so a step must pin what it fetches (here: requirements with hashes).
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.dockerfile import Copy, Run
from tests.cluster.image_store import sha256
from tests.cluster.problem import ClusterProblem

HOST_ARGUMENTS = {
    "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
    "PIP_CERT": "/etc/ssl/certs/ca-certificates.crt",
    "UV_CACHE_DIR": "/tmp/uv-cache",
}
"""Build arguments that point RUN steps at what `RUN_STEP` mounts from this machine."""

PASSED_ON = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL",
             "UV_DEFAULT_INDEX")  # fmt: skip
"""Variables of this machine that say where packages come from; what is installed is pinned by hash, wherever from."""

RUN_STEP = """
mount -t overlay overlay -o "index=off,redirect_dir=off,metacopy=off,lowerdir=$LOWER,upperdir=$DRAFT/fs,workdir=$DRAFT/work" "$DRAFT/root"
cd "$DRAFT/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 tmpfs tmp
mount --bind /etc/resolv.conf etc/resolv.conf
mount --bind /etc/ssl/certs etc/ssl/certs
mount -o remount,bind,ro etc/ssl/certs
mkdir tmp/uv-cache
mount --bind "$UV_CACHE" tmp/uv-cache
exec chroot . /usr/bin/env -i "$@"
"""  # noqa: E501 (one option string)
"""One RUN step in mount and process namespaces of its own. Nothing of the machine but these mounts is seen, and /tmp is
memory: what a step leaves there is in no layer."""


@dataclass(frozen=True)
class Layer:
    """One step on top of another layer."""

    digest: str
    """`sha256:` and the digest of the step's inputs and everything below; stands where OCI has the diff id."""
    step: Run | Copy


def planned_layers(steps: tuple[Run | Copy, ...], base: str, context: Path) -> list[Layer]:
    """The layers that these steps make on the layer `base` (empty: on nothing), lowest first; builds nothing."""
    layers: list[Layer] = []
    parent = base
    for step in steps:
        content = content_digest(context / step.source) if isinstance(step, Copy) else ""
        parent = sha256(f"{parent}\n{step!r}\n{content}".encode())
        layers.append(Layer(parent, step))
    return layers


def content_digest(source: Path) -> str:
    """A digest of a file, or of the names and content of all files below a folder.

    Raises ClusterProblem when the source is not there.
    """
    if not source.exists():
        raise ClusterProblem(f"A Dockerfile copies {source}, which is not there.")
    lines = []
    for file in [source] if source.is_file() else _files(source):
        lines.append(f"{file.relative_to(source)} {_mode(file):o} {sha256(file.read_bytes())}")
    return sha256("\n".join(lines).encode())


def _files(folder: Path) -> Iterator[Path]:
    """Every file of the source, without what Python writes beside it."""
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)


@dataclass(frozen=True)
class LayerCache:
    """The folder that holds one folder for each layer."""

    root: Path

    def folder(self, digest: str) -> Path:
        return self.root / digest.removeprefix("sha256:")

    def build(self, layers: list[Layer], base: list[str], context: Path) -> None:
        """Builds those that are missing, on the base's layers (lowest first)."""
        below = list(base)
        for layer in layers:
            if not self.folder(layer.digest).exists():
                self._build(layer, below, context)
            below.append(layer.digest)

    def _build(self, layer: Layer, below: list[str], context: Path) -> None:
        started = time.monotonic()
        draft = self.draft(layer.digest)
        if isinstance(layer.step, Copy):
            copy_files(context / layer.step.source, draft / "fs" / layer.step.target.lstrip("/"))
        else:
            lower = ":".join(str(self.folder(digest)) for digest in reversed(below))
            run_step(layer.step, lower, draft)
        self.keep(layer.digest)
        print(f"  {_title(layer.step)} ({time.monotonic() - started:.1f} s)", flush=True)

    def draft(self, digest: str) -> Path:
        """An empty place to build a layer in; a crash leaves it, and the next build starts it anew."""
        draft = self.root / "draft" / digest.removeprefix("sha256:")
        shutil.rmtree(draft, ignore_errors=True)
        for name in ("fs", "work", "root"):
            (draft / name).mkdir(parents=True)
        return draft

    def keep(self, digest: str) -> None:
        """Turns the draft into the layer."""
        draft = self.root / "draft" / digest.removeprefix("sha256:")
        (draft / "fs").rename(self.folder(digest))
        shutil.rmtree(draft)

    def prune(self, digests: set[str]) -> None:
        """Removes every layer but these."""
        names = {digest.removeprefix("sha256:") for digest in digests}
        for folder in self.root.iterdir():
            if folder.name not in names:
                shutil.rmtree(folder)


def copy_files(source: Path, target: Path) -> None:
    """Copies a file or folder; all of it belongs to root, and all may read it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copy(source, target)
    else:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copy)
    for path in [target, *target.rglob("*")]:
        os.chown(path, 0, 0)
        path.chmod(_mode(path))


def _mode(path: Path) -> int:
    """The mode in the image: folders and programs 755, all else 644, whatever the umask of the checkout was."""
    return 0o755 if path.stat().st_mode & 0o100 else 0o644


def run_step(step: Run, lower: str, draft: Path) -> None:
    """Runs one RUN step; its changes are in draft/fs. Raises ClusterProblem with the command's last words."""
    uv_cache = Path(os.environ.get("UV_CACHE_DIR") or _user_cache() / "uv")
    uv_cache.mkdir(parents=True, exist_ok=True)
    passed_on = [(name, os.environ[name]) for name in PASSED_ON if name in os.environ]
    variables = [f"{name}={value}" for name, value in (*passed_on, *step.environment)]
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", RUN_STEP, "sh",
         *variables, "/bin/sh", "-c", step.command],
        env={**os.environ, "LOWER": lower, "DRAFT": str(draft), "UV_CACHE": str(uv_cache)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise ClusterProblem(f"Building an image failed at {_title(step)}:\n{tail}")


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _title(step: Run | Copy) -> str:
    """The step in one line of a terminal."""
    text = f"COPY {step.source}" if isinstance(step, Copy) else f"RUN {step.command}"
    return text if len(text) <= 70 else f"{text[:67]}..."
