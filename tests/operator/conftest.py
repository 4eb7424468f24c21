"""Fixtures of the tests against a real API server: kubectl, and one operator for each module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.light import LightCluster, free_port
from tests.operator.kubelet import NAMESPACE
from tests.operator.operator_process import ROOT, Kubectl, eventually, running_operator


@pytest.fixture(scope="session")
def kubectl(light_cluster: LightCluster) -> Kubectl:
    tool = Kubectl(light_cluster.binary("kubectl"), light_cluster.kubeconfig)
    tool("apply", "-f", str(ROOT / "crds" / "finetunes.yaml"))
    eventually(lambda: tool("get", "finetunes", "-A", "-o", "name") is not None)
    tool.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    return tool


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def operator(
    light_cluster: LightCluster, kubectl: Kubectl, port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("operator")
    gpus = [{"name": "H100", "nodeLabels": {"pool": "h100"}, "pricePerHour": "2.50", "tokensPerSecond": 100}]
    waits = {"retryWaitSeconds": 1, "resyncSeconds": 5, "nodeLossSeconds": 1}
    settings = {**waits, "gpus": gpus, "prices": {"currency": "EUR"}}
    with running_operator(light_cluster.kubeconfig, directory, port, **settings):
        yield directory / "operator.log"
    assert "bug in the operator" not in (directory / "operator.log").read_text()
