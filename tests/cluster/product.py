"""The product on a cluster, as its user installs it: images, S3, chart. For the end-to-end tests and the quickstart."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.cluster.problem import ClusterProblem
from tests.cluster.s3 import S3, s3_manifest

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "finetune-operator"
RELEASE = "finetune-operator"
"""Name of the release and of its namespace."""

INSTALL_SECONDS = 180
"""Longest `helm --wait`."""


@dataclass(frozen=True)
class Images:
    """References of the three images, as pods name them."""

    operator: str
    trainer: str
    versitygw: str


def install_operator(helm: Path, kubeconfig: Path, images: Images, *settings: str) -> None:
    """`helm upgrade --install --wait`; `settings` are further `--set` words. Raises ClusterProblem, in Helm's words."""
    values = [*_image_values("image", images.operator), *_image_values("trainerImage", images.trainer), *settings]
    command = [str(helm), "upgrade", "--install", RELEASE, str(CHART), "--kubeconfig", str(kubeconfig)]
    command += ["--namespace", RELEASE, "--create-namespace", "--wait", f"--timeout={INSTALL_SECONDS}s"]
    command += [word for value in values for word in ("--set", value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "another operation" in done.stderr:
        raise ClusterProblem(
            f"Another installation of {RELEASE} is under way, or one was cut off. If it was cut off, type: "
            f"kubectl delete secret -n {RELEASE} -l owner=helm,status!=deployed"
        )
    if done.returncode != 0:
        raise ClusterProblem(f"helm could not install the operator: {done.stderr.strip()}")


class HasKubectl(Protocol):
    """A cluster as far as installing into it goes."""

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """kubectl's output. Raises ClusterProblem with its own words."""
        ...


def install_s3(cluster: HasKubectl, images: Images) -> S3:
    """The cluster's S3, running; with the address at which this machine reaches it."""
    cluster.kubectl("apply", "-f", "-", input=s3_manifest(images.versitygw))
    cluster.kubectl("rollout", "status", "deployment/versitygw", "-n", "s3", "--timeout=60s")
    address = cluster.kubectl("get", "service", "s3", "-n", "s3", "-o", "jsonpath={.spec.clusterIP}")
    return S3(f"http://{address}:7070")


def _image_values(name: str, reference: str) -> list[str]:
    repository, _, tag = reference.rpartition(":")
    return [f"{name}.repository={repository}", f"{name}.tag={tag}"]
