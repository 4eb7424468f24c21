"""The command line of each component, as values: nothing here starts anything. Proven with Kubernetes 1.36.

Every address is loopback or the node's bridge, so that nothing of the cluster is seen from outside the machine.
"""

from dataclasses import dataclass
from pathlib import Path

from tests.cluster.network import SERVICES


@dataclass(frozen=True)
class Ports:
    """The TCP ports of a control plane."""

    etcd: int = 2379
    etcd_peer: int = 2380
    apiserver: int = 6443
    controllers: int = 10257
    scheduler: int = 10259


@dataclass(frozen=True)
class ControlPlane:
    """Where a control plane's files lie and where it answers."""

    pki: Path
    run: Path
    data: Path
    address: str
    """The API server's address: 127.0.0.1, or the bridge's where pods must reach it."""
    ports: Ports

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.ports.apiserver}"


def etcd(plane: ControlPlane) -> list[str]:
    """No fsync: the state is thrown away with the cluster."""
    client, peer = (f"http://127.0.0.1:{port}" for port in (plane.ports.etcd, plane.ports.etcd_peer))
    return [
        "etcd",
        f"--data-dir={plane.data}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def apiserver(plane: ControlPlane) -> list[str]:
    """The API server, with the node authorizer and RBAC as on any real cluster."""
    pki = plane.pki
    return [
        "kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{plane.ports.etcd}",
        f"--bind-address={plane.address}",
        f"--advertise-address={plane.address}",
        f"--secure-port={plane.ports.apiserver}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/kubelet-client.crt",
        f"--kubelet-client-key={pki}/kubelet-client.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged",
        f"--service-cluster-ip-range={SERVICES}",
        # The endpoint of the Service `kubernetes` refuses loopback addresses; without a node nobody uses it.
        f"--endpoint-reconciler-type={'none' if plane.address.startswith('127.') else 'lease'}",
    ]


def controller_manager(plane: ControlPlane) -> list[str]:
    """All controllers. The high client limits are for load tests, which would else measure the limit."""
    return [
        "kube-controller-manager",
        f"--kubeconfig={plane.run}/controller-manager.kubeconfig",
        f"--service-account-private-key-file={plane.pki}/sa.key",
        f"--root-ca-file={plane.pki}/ca.crt",
        "--use-service-account-credentials",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={plane.ports.controllers}",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]


def scheduler(plane: ControlPlane) -> list[str]:
    return [
        "kube-scheduler",
        f"--kubeconfig={plane.run}/scheduler.kubeconfig",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={plane.ports.scheduler}",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]
