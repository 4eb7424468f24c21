"""What the machine must have before a cluster can start: root, and a few Debian packages."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.cluster.problem import ClusterProblem

SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
"""Debian keeps nft, ip's helpers and containerd where an ordinary PATH does not look."""

LIGHT = {"openssl": "openssl", "setpriv": "util-linux"}
"""Program -> Debian package, for the API server without a node."""

NODE = LIGHT | {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "mount": "mount",
    "/bin/busybox": "busybox-static",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
"""Program -> Debian package, for the whole cluster and for building its images."""


def missing_packages(programs: dict[str, str]) -> list[str]:
    """The Debian packages of the programs that are not on this machine, sorted."""
    return sorted({package for program, package in programs.items() if not _present(program)})


def _present(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else shutil.which(program, path=SEARCH_PATH) is not None


def require_root() -> None:
    """Raises ClusterProblem unless we are root: a node makes namespaces, mounts and network interfaces."""
    if os.geteuid() != 0:
        raise ClusterProblem("The local cluster needs root, for its node's containers and network: run it with sudo.")


def require_packages(programs: dict[str, str], *, install: bool = False) -> None:
    """Raises ClusterProblem that names the missing packages and what to type; installs them instead if asked to."""
    missing = missing_packages(programs)
    if not missing:
        return
    if install:
        install_packages(missing)
        missing = missing_packages(programs)
    if missing:
        names = " ".join(missing)
        raise ClusterProblem(
            f"Missing Debian package{'s' if len(missing) > 1 else ''}: {', '.join(missing)}. "
            f"Type: sudo apt-get update && sudo apt-get install --yes --no-install-recommends {names}"
        )


def install_packages(names: list[str]) -> None:
    """Installs Debian packages with apt-get. Raises ClusterProblem with apt-get's last words when it fails."""
    require_root()
    if shutil.which("apt-get") is None:
        return  # The caller then says which packages are missing; their names differ elsewhere.
    print(f"Installing Debian packages: {', '.join(names)}", flush=True)
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *names]):
        done = subprocess.run(
            ["apt-get", "--quiet", "-o", "DPkg::Lock::Timeout=300", *command],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
            raise ClusterProblem(f"`apt-get {' '.join(command)}` failed:\n{tail}")
