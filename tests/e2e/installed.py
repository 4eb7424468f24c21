"""The installed product, once for all end-to-end tests."""

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from tests.cluster.images import build_and_load
from tests.cluster.local_cluster import Cluster
from tests.cluster.product import Images, install_operator, install_s3
from tests.cluster.s3 import CLUSTER_ENDPOINT, S3
from tests.operator.operator_process import Kubectl
from tests.trainer.tiny import a_model_folder

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NAMESPACE = "e2e"
BUCKET = "e2e"
POD_CPU = "600m"
"""Three pods at a time on two cores, beside the operator and S3: most of a short run is waiting."""
POD = {
    "gpusPerNode": 0,
    "cpu": POD_CPU,
    "memory": "2Gi",
    "ephemeralStorage": "1Gi",
    "sharedMemory": "64Mi",
    "terminationGracePeriodSeconds": 5,
}
GANG_STEPS = {"maxSteps": 500, "learningRate": 1e-4, "loggingSteps": 50, "saveSteps": 50}
"""Of the run in two pods, and of the same one in a single pod with the rows of both in each step."""
WORDS = ("red", "green", "blue", "grey")
ROWS = [{"prompt": f"{n} say {word}: ", "completion": word} for n, word in enumerate(WORDS * 6)]


@dataclass(frozen=True)
class Product:
    """kubectl and S3 of a cluster on which the product is installed."""

    kubectl: Kubectl
    s3: "S3Client"

    def finetune(self, name: str) -> dict[str, Any]:
        """The Finetune."""
        return self.kubectl.get("finetune", name, "-n", NAMESPACE)

    def ended(self, name: str, seconds: float = 300) -> dict[str, Any]:
        """Its status once nothing happens any more."""

        def probe() -> Any:
            status = self.finetune(name)["status"]
            return status if status.get("phase") in ("Succeeded", "Failed", "Suspended", "Cancelled") else None

        return dict(self.eventually(probe, seconds, lambda: self.story(name)))

    def eventually(self, probe: Callable[[], Any], seconds: float, story: Callable[[], str] = str) -> Any:
        """The first true answer; fails with the story when none comes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if answer := probe():
                return answer
            time.sleep(0.5)
        raise AssertionError(f"it did not happen within {seconds:.0f} s\n{story()}")

    def story(self, name: str) -> str:
        """What somebody who was paged would read first: status, pods, logs."""
        selector = f"finetune-operator.io/name={name}"
        logs = self.kubectl("logs", "-n", NAMESPACE, "-l", selector, "--tail=40", "--prefix")
        pods = self.kubectl("get", "pods", "-n", NAMESPACE, "-l", selector, "-o", "wide")
        return f"{json.dumps(self.finetune(name)['status'], indent=1)}\n{pods}\n{logs}"

    def change(self, name: str, **spec: Any) -> None:
        """Patch its spec."""
        patch = json.dumps({"spec": spec})
        self.kubectl("patch", "finetune", name, "-n", NAMESPACE, "--type=merge", "-p", patch)

    def saved_step(self, name: str) -> int:
        """Step of the newest checkpoint that the status shows; 0 before there is one."""
        return int(self.finetune(name)["status"].get("checkpoint", {}).get("step", 0))

    def train_pods(self, name: str) -> list[dict[str, Any]]:
        """Its train pods, whatever has become of them."""
        selector = f"finetune-operator.io/name={name},finetune-operator.io/stage=train"
        return list(self.kubectl.get("pods", "-n", NAMESPACE, "-l", selector)["items"])

    def keys_of(self, name: str) -> list[str]:
        """Every object that the run has written."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"out/{NAMESPACE}/{name}/")
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def published_by(self, name: str) -> list[str]:
        """What it has published, or begun to; checkpoints have manifests of their own, and are no artifact."""
        return [
            key
            for key in self.keys_of(name)
            if "/artifacts/" in key or (key.endswith("/manifest.json") and "/checkpoints/" not in key)
        ]

    def read_json(self, uri: str) -> dict[str, Any]:
        """A JSON object in S3."""
        return dict(json.loads(self._read(uri)))

    def read_lines(self, uri: str) -> list[dict[str, Any]]:
        """A file in S3 with a JSON object in each line."""
        return [json.loads(line) for line in self._read(uri).splitlines()]

    def _read(self, uri: str) -> bytes:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()


def a_run(name: str, **spec: Any) -> dict[str, Any]:
    """A Finetune of the tiny model that ends in seconds; `spec` replaces whole fields."""
    whole = {
        "model": {"uri": f"s3://{BUCKET}/base"},
        "datasets": [{"name": "rows", "uri": f"s3://{BUCKET}/rows.jsonl"}],
        "split": {"trainPercentage": 75, "devPercentage": 25},
        "hyperparameters": {"epochs": 4, "learningRate": 0.01, "loggingSteps": 1},
        "evaluation": {"metrics": ["perplexity", "exactMatch"], "rows": 4},
        "generation": {"maxNewTokens": 8},
        "output": {"uri": f"s3://{BUCKET}/out"},
        "storage": {"endpoint": CLUSTER_ENDPOINT, "credentialsSecretRef": {"name": "s3"}},
        "trainer": POD,
        "retryLimit": 0,
    } | spec
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "Finetune",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": whole,
    }


@pytest.fixture(scope="session")
def product(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """The product, installed as the README says, with a base model and rows in S3."""
    images = Images(**build_and_load(cluster))
    access = install_s3(cluster, images)
    settings = [f"settings.prepare.cpu={POD_CPU}", "settings.retryWaitSeconds=1", "settings.statusIntervalSeconds=1"]
    install_operator(cluster.binary("helm"), cluster.kubeconfig, images, *settings)
    installed = Product(Kubectl(cluster.binary("kubectl"), cluster.kubeconfig), _s3_client(access))
    _upload(installed.s3, a_model_folder(tmp_path_factory.mktemp("tiny")))
    _make_namespace(installed.kubectl, access)
    yield installed
    installed.kubectl("delete", "namespace", NAMESPACE, "--wait=true", "--timeout=120s")


def _s3_client(access: S3) -> "S3Client":
    return boto3.client(
        "s3",
        endpoint_url=access.endpoint,
        aws_access_key_id=access.access_key,
        aws_secret_access_key=access.secret_key,
        region_name=access.region,
    )


def _upload(s3: "S3Client", model: Path) -> None:
    if BUCKET not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=BUCKET)
    for file in model.iterdir():
        s3.upload_file(str(file), BUCKET, f"base/{file.name}")
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    s3.upload_fileobj(io.BytesIO(text.encode()), BUCKET, "rows.jsonl")
    broken = [*text.splitlines()[:2], '{"prompt": "x", ', *text.splitlines()[3:]]
    s3.upload_fileobj(io.BytesIO("\n".join(broken).encode()), BUCKET, "broken.jsonl")


def _make_namespace(kubectl: Kubectl, access: S3) -> None:
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    keys = {"AWS_ACCESS_KEY_ID": access.access_key, "AWS_SECRET_ACCESS_KEY": access.secret_key}
    for name, data in {"s3": keys, "wrong": dict.fromkeys(keys, "nonsense")}.items():
        meta = {"name": name, "namespace": NAMESPACE}
        kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data})
