"""What `status` and `logs` print: read-only views of the running cluster."""

import subprocess
import sys
import time
from pathlib import Path

from tests.cluster.local_cluster import COMPONENTS, Cluster, is_up, running
from tests.cluster.paths import State, cache_root, cluster_state
from tests.cluster.problem import ClusterProblem
from tests.cluster.processes import Background, last_lines, recorded


def status() -> str:
    """One readable block: components, node, images, disk."""
    state = cluster_state()
    found = {process.name: process for process in recorded(state.run)}
    lines = [f"{name:26}{_describe(found.get(name), state)}" for name in COMPONENTS]
    if is_up():
        lines += _inside(running())
    lines += [f"{'state':26}{state.root} ({_size(state.root)})", f"{'programs':26}{_size(cache_root() / 'bin')}"]
    return "\n".join(lines)


def _describe(process: Background | None, state: State) -> str:
    if process is None:
        return "down"
    if process.alive:
        return f"up    pid {process.pid}, {_resident(process.pid)}"
    return f"died  see {state.logs / process.name}.log"


def _resident(pid: int) -> str:
    """The memory of a process in MiB, from /proc/PID/statm (pages of 4 KiB on every machine we build for)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return f"{pages * 4096 // 2**20} MiB"


def _inside(cluster: Cluster) -> list[str]:
    ready = 'jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.allocatable}'
    condition, _, allocatable = cluster.kubectl("get", "node", "local", "-o", ready).partition(" ")
    pods = cluster.kubectl("get", "pods", "-A", "--no-headers").splitlines()
    images = [name for name in cluster.ctr("images", "ls", "--quiet").split() if not name.startswith("sha256:")]
    return [
        f"{'node':26}{'Ready' if condition == 'True' else 'not Ready'}, {allocatable}",
        f"{'pods':26}{len(pods)}",
        *(f"{'image' if index == 0 else '':26}{name}" for index, name in enumerate(images)),
    ]


def _size(folder: Path) -> str:
    """Disk used below a folder, each file once and other file systems left out, as `du` counts it."""
    if not folder.exists():
        return "nothing"
    done = subprocess.run(["du", "-shx", str(folder)], capture_output=True, text=True, check=False)
    return done.stdout.split()[0] if done.stdout else "unknown"


def print_logs(name: str | None, lines: int, *, follow: bool) -> None:
    """Prints the end of a log: a component's by its name, a pod's containers' by NAMESPACE/POD.

    Raises ClusterProblem with the names to choose from when there is no such log.
    """
    paths = _log_files(name)
    for path in paths:
        if len(paths) > 1:
            print(f"==> {path}")
        print(last_lines(path, lines), flush=True)
    if follow:
        _follow(paths)


def _log_files(name: str | None) -> list[Path]:
    state = cluster_state()
    components = sorted(path.stem for path in state.logs.glob("*.log"))
    pods = {"/".join(path.name.split("_")[:2]) for path in state.pod_logs.glob("*_*_*")}
    if name in components:
        return [state.logs / f"{name}.log"]
    if name in pods:
        return sorted(state.pod_logs.glob(f"{name.replace('/', '_')}_*/*/*.log"))
    problem = "Name a log" if name is None else f"{name} has no log"
    raise ClusterProblem(f"{problem}: one of {', '.join([*components, *sorted(pods)]) or 'none is there yet'}.")


def _follow(paths: list[Path]) -> None:
    """Prints what is added to the files, until interrupted."""
    with_ends = {path: path.stat().st_size for path in paths}
    while True:
        for path, end in with_ends.items():
            with path.open("rb") as file:
                file.seek(end)
                added = file.read()
            with_ends[path] = end + len(added)
            sys.stdout.buffer.write(added)
            sys.stdout.flush()
        time.sleep(0.3)
