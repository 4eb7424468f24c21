"""The base of our images where no registry is reached: the machine's own Debian or Ubuntu with Python, and no more.

Elsewhere the Dockerfiles stand on python:3.12-slim. Limits: needs debootstrap and the machine's apt sources; what the
archive gives on the day of the build is what the image has, until the recipe changes.
"""

import platform
import shutil
import subprocess
import time
from pathlib import Path

from tests.cluster.image_builder import LayerCache
from tests.cluster.image_store import sha256
from tests.cluster.problem import ClusterProblem

PACKAGES = ("ca-certificates", "python3", "python3-venv")
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
"""What an image of a registry would say in its configuration."""

UNNEEDED = ("dev/*", "var/cache/apt/*", "var/lib/apt/lists/*", "var/log/*", "usr/share/locale/*", "usr/share/man/*",
            "usr/share/info/*", "usr/lib/*/gconv/*")  # fmt: skip
"""Removed, and the documentation but for its `copyright` files: half of the size."""

EMPTY = ("etc/resolv.conf", "etc/hosts", "etc/hostname")
"""The machine's own, which debootstrap copies: every container gets its own."""


def base_layer() -> str:
    """The digest that names the base's one layer; builds nothing."""
    return sha256(repr((suite(), platform.machine(), PACKAGES, UNNEEDED, EMPTY)).encode())


def suite() -> str:
    """The machine's release: `bookworm`. Raises ClusterProblem where there is none."""
    name = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    if not name:
        raise ClusterProblem("Base images need Debian or Ubuntu, and /etc/os-release names no release of theirs.")
    return name


def mirror() -> str:
    """Where the machine's apt has its packages from. Raises ClusterProblem when it has no sources."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Codename: " + suite(), "Component: main"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    if not found:
        raise ClusterProblem(f"apt has no index of {suite()}. Type: sudo apt-get update")
    return found[0]


def build_base(cache: LayerCache) -> str:
    """Makes the base's layer unless it is there; returns its digest."""
    digest = base_layer()
    if cache.folder(digest).exists():
        return digest
    started = time.monotonic()
    root = cache.draft(digest) / "fs"
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite(), str(root), mirror()]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-5:])
        raise ClusterProblem(f"debootstrap failed; its log is {root}/debootstrap/debootstrap.log\n{tail}")
    trim(root)
    cache.keep(digest)
    print(f"  base image of {suite()} ({time.monotonic() - started:.1f} s)", flush=True)
    return digest


def trim(root: Path) -> None:
    """Removes what no container of ours reads."""
    for pattern in UNNEEDED:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in (root / "usr/share/doc").rglob("*"):
        if not path.is_dir() and path.name != "copyright":
            path.unlink()
    for name in EMPTY:
        (root / name).unlink(missing_ok=True)
        (root / name).touch()
