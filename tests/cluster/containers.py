"""The node's containerd: the pause image, and what containers leave behind when nobody is there to clean up."""

import hashlib
import io
import json
import os
import platform
import signal
import tarfile
from pathlib import Path

from tests.cluster.network import tool
from tests.cluster.node import PAUSE_IMAGE
from tests.cluster.paths import State
from tests.cluster.processes import signal_pid, started_at, wait_until

CGROUPS = Path("/sys/fs/cgroup")


def ctr(state: State, *arguments: str, check: bool = True) -> str:
    """Runs containerd's own client in the namespace of Kubernetes; returns what it printed."""
    return tool("ctr", "--address", str(state.containerd_socket), "--namespace", "k8s.io", *arguments,
                check=check).stdout  # fmt: skip


def answers(state: State) -> bool:
    """Whether containerd answers on its socket."""
    return tool("ctr", "--address", str(state.containerd_socket), "version", check=False).returncode == 0


def load_pause_image(state: State) -> None:
    """Makes the sandbox image from the machine's busybox and loads it, unless containerd has it."""
    if PAUSE_IMAGE in ctr(state, "images", "ls", "--quiet").split():
        return
    archive = state.run / "pause.tar"
    write_pause_archive(archive, Path("/bin/busybox").read_bytes())
    ctr(state, "images", "import", str(archive))
    archive.unlink()


def write_pause_archive(archive: Path, busybox: bytes) -> None:
    """An image of one program, as `docker save` would write it. Source: Docker Image Specification v1.2."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        _add(tar, "bin/busybox", busybox, mode=0o755)
        for name in ("sh", "true", "false", "sleep", "wget", "nslookup", "cat", "echo", "id"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox", "sleep", "2147483647"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, mode="w") as tar:
        _add(tar, "layer.tar", layer.getvalue())
        _add(tar, "config.json", json.dumps(config).encode())
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def remove_old_containers(state: State) -> bool:
    """Deletes the containers that an earlier run left in containerd's books; says whether there were any."""
    names = ctr(state, "containers", "ls", "--quiet").split()
    for task in ctr(state, "tasks", "ls", "--quiet").split():
        ctr(state, "tasks", "rm", "--force", task, check=False)
    if names:
        ctr(state, "containers", "rm", *names)
    return bool(names)


def kill_containers(state: State) -> None:
    """Kills every process in our control group and every shim of our containerd, whoever started them."""
    for _ in range(20):
        doomed = pod_processes(state) + shims(state)
        if not doomed:
            break
        for pid in doomed:
            signal_pid(pid, signal.SIGKILL)
        wait_until(lambda doomed=doomed: all(started_at(pid) is None for pid in doomed), 2)  # type: ignore[misc]


def pod_processes(state: State) -> list[int]:
    """The live processes in the control group of our pods."""
    mark = f"/{state.cgroup}/"
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        if mark in _read(folder / "cgroup") and started_at(int(folder.name)) is not None:
            found.append(int(folder.name))
    return found


def shims(state: State) -> list[int]:
    """containerd's helper processes, which live on when it dies; known by the socket's name in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        words = _read(folder / "cmdline").split("\0")
        if "containerd-shim" in words[0] and str(state.containerd_socket) in words:
            found.append(int(folder.name))
    return found


def _read(path: Path) -> str:
    """A file below /proc, empty when its process has gone meanwhile."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def make_cgroups(state: State) -> None:
    """Makes the control group that the kubelet puts all pods in, in every hierarchy of version 1 or version 2."""
    if (CGROUPS / "cgroup.controllers").exists():
        controllers = (CGROUPS / "cgroup.controllers").read_text().split()
        (CGROUPS / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
    for folder in cgroup_folders(state):
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # Empty in a new group of version 1, and then nothing can join.
            if (folder / name).exists() and (folder / "tasks").exists():
                (folder / name).write_text((folder.parent / name).read_text())


def cgroup_folders(state: State) -> list[Path]:
    """Our control group in each mounted hierarchy."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS / state.cgroup]
    hierarchies = {path.resolve() for path in CGROUPS.iterdir() if (path / "cgroup.procs").exists()}
    return [hierarchy / state.cgroup for hierarchy in sorted(hierarchies)]


def remove_cgroups(state: State) -> None:
    """Removes our control groups, the innermost first; one that still holds a process stays, and `down` says so."""
    for top in cgroup_folders(state):
        for folder, _, _ in os.walk(top, topdown=False):
            wait_until(lambda folder=folder: _rmdir(Path(folder)), 1)  # type: ignore[misc]


def remove_shim_sockets(state: State) -> None:
    """Removes the sockets of killed shims: containerd keeps all of them in /run/containerd/s, whoever's they are."""
    for record in (state.run / "containerd").glob("io.containerd.runtime.v2.task/*/*/address"):
        socket = Path(record.read_text().removeprefix("unix://"))
        if socket.parent == Path("/run/containerd/s"):
            socket.unlink(missing_ok=True)


def _rmdir(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # Busy: a killed process has not been taken off it yet.
        return False
    return True


def mounts_below(folder: Path) -> list[str]:
    """The mount points below the folder, the innermost first."""
    lines = Path("/proc/mounts").read_text().splitlines()
    points = [line.split()[1].encode().decode("unicode_escape") for line in lines]
    return sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True)


def unmount_all(state: State) -> None:
    """Unmounts what the node left: volumes of pods, roots of containers, network namespaces."""
    for point in mounts_below(state.root):
        tool("umount", "--lazy", point, check=False)
