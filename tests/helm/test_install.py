"""The chart on a real API server: what its roles allow, and what stays when the release goes."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_api import names

from tests.cluster.light import LightCluster, light_api_server
from tests.helm.conftest import CHART, Chart

pytestmark = pytest.mark.api_server

NAMESPACE = "ft-system"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:ft-finetune-operator"
IMAGES = "image.repository=r.test/operator,trainerImage.repository=r.test/trainer"
CRD = f"customresourcedefinition/{names.PLURAL}.{names.GROUP}"


class Release:
    """Helm and kubectl on an API server of this module's own."""

    def __init__(self, light: LightCluster, helm: Path) -> None:
        self._light, self._helm = light, helm

    def helm(self, *arguments: str) -> str:
        return self._run(str(self._helm), *arguments, "--namespace", NAMESPACE)

    def kubectl(self, *arguments: str) -> str:
        return self._run(str(self._light.binary("kubectl")), *arguments)

    def may(self, verb: str, resource: str, namespace: str = "team-a", name: str = "") -> bool:
        """Whether the operator's service account may do this."""
        command = [str(self._light.binary("kubectl")), "--kubeconfig", str(self._light.kubeconfig), "auth", "can-i"]
        kind, _, subresource = resource.partition("/")  # kubectl would take what follows the slash for a name.
        command += [
            verb,
            f"{kind}/{name}" if name else kind,
            f"--subresource={subresource}",
            f"--as={ACCOUNT}",
            f"--namespace={namespace}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.strip() in ("yes", "no"), done.stderr
        return done.stdout.strip() == "yes"

    def _run(self, *command: str) -> str:
        command = (*command, "--kubeconfig", str(self._light.kubeconfig))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def release(chart: Chart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The chart, installed; without a node nothing is waited for."""
    with light_api_server(tmp_path_factory.mktemp("helm")) as light:
        release = Release(light, chart.helm)
        release.helm("install", "ft", str(CHART), "--create-namespace", "--set", IMAGES)
        yield release


ALLOWED = [
    ("watch", "finetunes.finetune-operator.io"),
    ("patch", "finetunes.finetune-operator.io/status"),
    ("create", "jobs.batch"),
    ("delete", "jobs.batch"),
    ("delete", "finetunes.finetune-operator.io"),
    ("patch", "finetunes.finetune-operator.io"),
    ("patch", "jobs.batch"),
    ("create", "configmaps"),
    ("create", "services"),
    ("watch", "pods"),
    ("delete", "pods"),
    ("patch", "pods/status"),
    ("create", "events"),
    ("patch", "events"),
    ("create", "tokenreviews.authentication.k8s.io"),
    ("get", "nodes"),
    ("list", "nodes"),
    ("watch", "customresourcedefinitions.apiextensions.k8s.io"),
]

FORBIDDEN = [
    *((verb, "secrets") for verb in ("get", "list", "watch", "create", "update", "patch", "delete")),
    ("update", "finetunes.finetune-operator.io"),
    ("deletecollection", "finetunes.finetune-operator.io"),
    ("patch", "pods"),
    ("create", "pods"),
    ("create", "pods/exec"),
    ("patch", "services"),
    ("delete", "services"),
    ("create", "deployments.apps"),
    ("patch", "nodes"),
    ("create", "serviceaccounts/token"),
    ("patch", "clusterroles.rbac.authorization.k8s.io"),
]


@pytest.mark.parametrize(("verb", "resource"), ALLOWED)
def test_the_operator_may(release: Release, verb: str, resource: str) -> None:
    assert release.may(verb, resource)


def test_the_operator_may_watch_its_own_lease_and_no_other(release: Release) -> None:
    assert release.may("watch", "leases.coordination.k8s.io", NAMESPACE, "ft-finetune-operator")
    assert not release.may("watch", "leases.coordination.k8s.io", NAMESPACE)


@pytest.mark.parametrize(("verb", "resource"), FORBIDDEN)
def test_the_operator_may_not(release: Release, verb: str, resource: str) -> None:
    assert not release.may(verb, resource)


def test_an_upgrade_to_named_namespaces_takes_the_rights_in_all_others(release: Release) -> None:
    release.kubectl("create", "namespace", "team-b")
    release.helm("upgrade", "ft", str(CHART), "--set", IMAGES, "--set", "settings.namespaces={team-b}")
    assert release.may("create", "jobs.batch", "team-b")
    assert not release.may("create", "jobs.batch", "team-a")
    assert release.may("create", "tokenreviews.authentication.k8s.io")


def test_finetunes_outlive_the_release_and_are_taken_up_by_the_next(release: Release) -> None:
    release.helm("uninstall", "ft")
    before = json.loads(release.kubectl("get", CRD, "-o", "json"))["metadata"]["uid"]
    release.helm("install", "ft", str(CHART), "--set", IMAGES)
    assert json.loads(release.kubectl("get", CRD, "-o", "json"))["metadata"]["uid"] == before
