"""A real API server with etcd and the controllers, without a node: for tests of the operator alone. No root needed.

Several can run at once, each with its own ports and folder. Limit: no pod ever runs; a test that wants one to finish
writes its status.
"""

import contextlib
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import certificates
from tests.cluster.api import Api
from tests.cluster.binaries import built_binaries
from tests.cluster.components import ControlPlane, Ports, apiserver, controller_manager, etcd
from tests.cluster.locks import locked
from tests.cluster.packages import LIGHT, require_packages
from tests.cluster.paths import cache_root
from tests.cluster.processes import Background, start, stop, wait_for

ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class LightCluster:
    """A running API server: its kubeconfig, its folder, and the programs that talk to it."""

    state_dir: Path
    kubeconfig: Path
    server: str
    binaries: Path

    def binary(self, name: str) -> Path:
        """A program of the build: kubectl, helm and so on."""
        return self.binaries / name


@contextlib.contextmanager
def light_api_server(state_dir: Path) -> Iterator[LightCluster]:
    """Starts etcd, API server and controller-manager below `state_dir`; kills them and removes their data at the end.

    They die with the calling thread, too, however it ends. Raises ClusterProblem when one of them does not start.
    """
    require_packages(LIGHT)
    binaries = built_binaries()
    plane = ControlPlane(_shared_pki(), state_dir / "run", state_dir / "etcd", ADDRESS, free_ports())
    light = LightCluster(state_dir, state_dir / "kubeconfig", plane.server, binaries)
    certificates.write_kubeconfig(light.kubeconfig, plane.pki, "admin", plane.server)
    certificates.write_kubeconfig(plane.run / "controller-manager.kubeconfig", plane.pki, "controller-manager",
                                  plane.server)  # fmt: skip
    processes: list[Background] = []
    try:
        _start(light, plane, processes)
        yield light
    finally:
        stop(processes, ask_seconds=0)
        shutil.rmtree(plane.data, ignore_errors=True)
        shutil.rmtree(plane.run, ignore_errors=True)


def _start(light: LightCluster, plane: ControlPlane, processes: list[Background]) -> None:
    def launch(command: list[str]) -> Background:
        program = str(light.binary(command[0]))
        log = light.state_dir / f"{command[0]}.log"
        process = start(command[0], [program, *command[1:]], run=plane.run, log=log, cwd=light.state_dir, bound=True)
        processes.append(process)
        return process

    launch(etcd(plane))
    server = launch(apiserver(plane))
    manager = launch(controller_manager(plane))  # Waits for the API server by itself, while that starts.
    api = Api(plane.server, plane.pki)
    wait_for("The API server", api.ready, 60, server, light.state_dir / "kube-apiserver.log")
    # So that pods can be made at once; the controllers look for the API server only once a second.
    api.make_default_account()
    log = light.state_dir / "kube-controller-manager.log"
    wait_for("The controller-manager", lambda: True, 0, manager, log)  # Says so if it has died meanwhile.


def _shared_pki() -> Path:
    """The certificates of all light clusters, made once for each user: making them would double the start."""
    pki = cache_root() / "light-pki"
    if not (pki / "kubelet.crt").exists():
        with locked(cache_root() / "light-pki.lock", "the making of certificates"):
            certificates.make_all(pki, ADDRESS)
    return pki


def free_ports() -> Ports:
    """Ports that nobody listens on now. Limit: another process may take one before we do; the start then fails."""
    with contextlib.ExitStack() as held:
        numbers = []
        for _ in range(5):
            listener = held.enter_context(socket.socket())
            listener.bind((ADDRESS, 0))
            numbers.append(listener.getsockname()[1])
    return Ports(*numbers)


def free_port() -> int:
    """One port that nobody listens on now."""
    return free_ports().etcd
