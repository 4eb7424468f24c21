"""The whole Kubernetes on this machine: control plane, node, DNS. Needs root; one for each machine.

`up` starts from fresh etcd and kubelet state each time and clears away what a crash left; only images stay. Its states
are thus two, up and down, and every way into either is the same whatever was before.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import certificates, containers, network, node
from tests.cluster.api import Api
from tests.cluster.binaries import built_binaries
from tests.cluster.components import ControlPlane, Ports, apiserver, controller_manager, etcd, scheduler
from tests.cluster.locks import locked
from tests.cluster.packages import NODE, SEARCH_PATH, require_packages, require_root
from tests.cluster.paths import State, cluster_state
from tests.cluster.problem import ClusterProblem
from tests.cluster.processes import Background, recorded, start, stop, wait_for

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "containerd", "kubelet",
              "kube-proxy", "coredns")  # fmt: skip
"""Every process of a running cluster, in the order of their start."""

SOCKET_CHARACTERS = 101
"""107, less containerd's own suffix `.ttrpc`. Source: unix(7), sun_path."""

FRESH = ("etcd", "kubelet", "pod-logs")
"""The folders that each `up` starts without."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster: what tests and commands do with it."""

    state: State
    binaries: Path

    @property
    def state_dir(self) -> Path:
        return self.state.root

    @property
    def kubeconfig(self) -> Path:
        return self.state.kubeconfig

    @property
    def containerd_socket(self) -> Path:
        return self.state.containerd_socket

    def binary(self, name: str) -> Path:
        """A program of the build: kubectl, helm, versitygw, etcd and so on."""
        return self.binaries / name

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Runs kubectl as administrator; returns its output. Raises ClusterProblem with its own words."""
        command = [str(self.binary("kubectl")), "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=input, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClusterProblem(f"`kubectl {' '.join(arguments)}` failed: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def ctr(self, *arguments: str) -> str:
        """Runs containerd's client in Kubernetes' namespace. Raises ClusterProblem with its own words."""
        return containers.ctr(self.state, *arguments)


def up(*, install: bool = False) -> Cluster:
    """The running cluster, started first if it is not up. With `install` missing Debian packages are installed.

    Raises ClusterProblem that names what is missing and what to type.
    """
    require_root()
    require_packages(NODE, install=install)
    state = cluster_state()
    _require_short_path(state)
    binaries = built_binaries()
    with locked(lock_file(), "`up` or `down`"):
        cluster = Cluster(state, binaries)
        if is_up() and _runs(binaries, state):
            return cluster
        _clear(state)
        network.refuse_strangers()
        try:
            _start(cluster)
        except BaseException:
            _clear(state)  # Half a cluster is of no use, and its processes would outlive us.
            raise
    return cluster


def _require_short_path(state: State) -> None:
    if len(str(state.containerd_socket)) > SOCKET_CHARACTERS:
        raise ClusterProblem(
            f"{state.containerd_socket} is longer than {SOCKET_CHARACTERS} characters, which no socket's name may be: "
            "set XDG_CACHE_HOME to a shorter folder."
        )


def down(*, purge: bool = False) -> None:
    """Stops everything and leaves no process, mount, interface or rule. With `purge` the images go, too."""
    require_root()
    state = cluster_state()
    if not state.root.exists():
        return
    with locked(lock_file(), "`up` or `down`"):
        _clear(state)
        if purge:
            shutil.rmtree(state.root)


def is_up() -> bool:
    """Whether every component of the cluster lives; a cluster with a dead component counts as down."""
    alive = {process.name for process in recorded(cluster_state().run) if process.alive}
    return alive >= set(COMPONENTS)


def running() -> Cluster:
    """The running cluster. Raises ClusterProblem when it is not up."""
    if not is_up():
        raise ClusterProblem("The local cluster is not running. Type: python -m tests.cluster up")
    return Cluster(cluster_state(), Path((cluster_state().run / "binaries").read_text()))


def lock_file() -> Path:
    """The lock that `up` and `down` hold; it lies outside the state, which `down --purge` removes."""
    return cluster_state().root.with_suffix(".lock")


def _runs(binaries: Path, state: State) -> bool:
    """Whether the running cluster was started from these programs."""
    record = state.run / "binaries"
    return record.exists() and record.read_text() == str(binaries)


def _plane(state: State) -> ControlPlane:
    return ControlPlane(state.pki, state.run, state.root / "etcd", network.GATEWAY, Ports())


def _launch(cluster: Cluster, name: str, command: list[str]) -> Background:
    """Starts one component, found among the built programs first and then on the machine."""
    path = f"{cluster.binaries}:{SEARCH_PATH}"
    program = shutil.which(command[0], path=path)
    if program is None:
        raise ClusterProblem(f"{command[0]} is not on this machine.")
    state = cluster.state
    return start(name, [program, *command[1:]], run=state.run, log=state.logs / f"{name}.log", cwd=state.root,
                 environment={"PATH": path})  # fmt: skip


def _start(cluster: Cluster) -> None:
    state = cluster.state
    for folder in (state.run, state.logs):
        folder.mkdir(parents=True, exist_ok=True)
    (state.run / "binaries").write_text(str(cluster.binaries))
    network.set_up(state.run)
    api = _start_control_plane(cluster)
    _start_node(cluster, api)


def _start_control_plane(cluster: Cluster) -> Api:
    state, plane = cluster.state, _plane(cluster.state)
    certificates.make_all(state.pki, plane.address)
    for user in ("admin", "controller-manager", "scheduler", "proxy", "node"):
        certificates.write_kubeconfig(state.run / f"{user}.kubeconfig", state.pki, user, plane.server)
    certificates.write_kubeconfig(state.kubeconfig, state.pki, "admin", plane.server)
    _launch(cluster, "etcd", etcd(plane))
    server = _launch(cluster, "kube-apiserver", apiserver(plane))
    _start_containerd(cluster)  # While the API server starts: it needs a second or two.
    api = Api(plane.server, state.pki)
    wait_for("The API server", api.ready, 60, server, state.logs / "kube-apiserver.log")
    _launch(cluster, "kube-controller-manager", controller_manager(plane))
    _launch(cluster, "kube-scheduler", scheduler(plane))
    return api


def _start_containerd(cluster: Cluster) -> None:
    """containerd with its pause image and no container of an earlier run."""
    state = cluster.state
    node.write_all(state)
    for _ in range(2):
        process = _launch(cluster, "containerd", ["containerd", "--config", f"{state.run}/containerd.toml"])
        wait_for("containerd", lambda: containers.answers(state), 30, process, state.logs / "containerd.log")
        if not containers.remove_old_containers(state):
            break
        stop([process])  # Its Kubernetes part still remembers them: it reads the books at its start only.
    containers.load_pause_image(state)


def _start_node(cluster: Cluster, api: Api) -> None:
    state = cluster.state
    containers.make_cgroups(state)
    started = {name: _launch(cluster, name, command) for name, command in node.node_commands(state).items()}
    wait_for("The node", api.node_ready, 90, started["kubelet"], state.logs / "kubelet.log")
    api.set_gpus(node.GPUS)
    manager = next(process for process in recorded(state.run) if process.name == "kube-controller-manager")
    log = state.logs / "kube-controller-manager.log"
    wait_for("The controller-manager", api.has_default_account, 60, manager, log)
    for name, process in started.items():
        if not process.alive:
            wait_for(name, lambda: False, 0, process, state.logs / f"{name}.log")


def _clear(state: State) -> None:
    """From whatever is there to nothing but images: processes, containers, mounts, interface, rules, groups."""
    processes = recorded(state.run)
    by_name = {process.name: process for process in processes}
    # The API server and etcd hold nothing worth a farewell; containerd writes its books, so it is asked.
    stop((process for process in processes if process.name != "containerd"), ask_seconds=0)
    containers.kill_containers(state)
    if "containerd" in by_name and by_name["containerd"].alive:
        containers.remove_old_containers(state)
        stop([by_name["containerd"]])
    containers.unmount_all(state)
    containers.remove_shim_sockets(state)
    network.tear_down(state.run)
    containers.remove_cgroups(state)
    for name in FRESH:
        shutil.rmtree(state.root / name, ignore_errors=True)
    shutil.rmtree(state.run, ignore_errors=True)
    _complain_about_leftovers(state)


def _complain_about_leftovers(state: State) -> None:
    left = containers.pod_processes(state) + containers.shims(state)
    mounts = containers.mounts_below(state.root)
    if left or mounts:
        raise ClusterProblem(f"Processes {left} and mounts {mounts} would not go: see `dmesg`; a reboot frees them.")
