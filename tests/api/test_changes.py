"""What may change once a Finetune is stored, and what kubectl makes of it."""

import copy
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from finetune_api import names
from finetune_api.crd import custom_resource_definition
from finetune_api.resource import MUTABLE_FIELDS, FinetuneSpec
from finetune_api.status import FinetuneStatus

from tests.api.conftest import NAMESPACE, ApiServer, Body, Refusal, wait_until
from tests.builders import a_body
from tests.cluster.light import LightCluster

pytestmark = pytest.mark.api_server

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))

CHANGES: dict[str, Any] = {
    "description": "another",
    "model": {"uri": "s3://models/other"},
    "datasets": [{"name": "other", "uri": "s3://data/other.jsonl"}],
    "split": {"trainPercentage": 50},
    "promptTemplate": "<<question>>",
    "completionTemplate": "<<answer>>",
    "method": {"lora": {"rank": 4}},
    "hyperparameters": {"epochs": 4},
    "evaluation": {"rows": 1},
    "generation": {"maxNewTokens": 1},
    "output": {"uri": "s3://elsewhere/models"},
    "storage": {"region": "eu-central-1"},
    "trainer": {"memory": "1Gi"},
    "tracking": {"sinks": ["tensorboard"]},
    "queue": {"name": "gpus"},
    "managedBy": "example.com/another",
}

STEERING: dict[str, Any] = {
    "retryLimit": 7,
    "suspend": True,
    "cancel": True,
    "pendingDeadlineSeconds": 60,
    "activeDeadlineSeconds": 60,
    "budget": {"limit": "10.00"},
    "ttlSecondsAfterFinished": 60,
    "guards": {"stallSeconds": 60, "onStall": "Restart"},
    "queue.priorityClassName": "urgent",
}


@pytest.fixture
def stored(server: ApiServer) -> Iterator[Body]:
    """A Finetune that is stored, and removed afterwards."""
    body = server.create(a_body("stored", queue={"name": "cpus", "priorityClassName": "low"}), store=True)
    yield body
    server.delete(body)


def nested(path: str, value: Any) -> dict[str, Any]:
    """`a.b` and a value as an object."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return dict(value)


def kubectl(light: LightCluster, *arguments: str, text: str = "") -> str:
    command = [str(light.binary("kubectl")), "--kubeconfig", str(light.kubeconfig), "-n", NAMESPACE, *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_field_is_tried() -> None:
    fields = {field.alias for field in FinetuneSpec.model_fields.values()}
    assert set(CHANGES) == fields - MUTABLE_FIELDS


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_that_trains_is_immutable(server: ApiServer, stored: Body, field: str) -> None:
    with pytest.raises(Refusal, match=rf"spec\.{field}[.\w]* is immutable .*create another Finetune"):
        server.change(stored, {field: CHANGES[field]})


def test_what_was_set_cannot_be_unset(server: ApiServer) -> None:
    body = server.create(a_body("set", promptTemplate="<<question>>"), store=True)
    with pytest.raises(Refusal, match=r"spec\.promptTemplate is immutable"):
        server.change(body, {"promptTemplate": None})
    server.delete(body)


@pytest.mark.parametrize("field", STEERING)
def test_what_steers_a_run_may_change(server: ApiServer, stored: Body, field: str) -> None:
    change = nested(field, STEERING[field])
    changed = server.change(stored, change)
    name, value = change.popitem()
    assert changed["spec"][name] == (stored["spec"].get(name, {}) | value if isinstance(value, dict) else value)
    assert changed["metadata"]["generation"] == 2


def test_every_steering_field_is_tried() -> None:
    assert set(STEERING) == MUTABLE_FIELDS


def test_a_cancellation_cannot_be_taken_back(server: ApiServer, stored: Body) -> None:
    cancelled = server.change(stored, {"cancel": True})
    with pytest.raises(Refusal, match=r"spec\.cancel: .*cancel is final"):
        server.change(cancelled, {"cancel": False})


def test_writing_the_status_changes_no_generation(server: ApiServer, stored: Body) -> None:
    status = {"observedGeneration": 1, "phase": "Pending"}
    written = server.write_status(stored, status)
    assert written["status"] == status
    assert written["metadata"]["generation"] == 1


def test_the_whole_status_is_kept_as_written(server: ApiServer, stored: Body) -> None:
    stamp = datetime(2026, 1, 1, tzinfo=UTC)
    condition = {"type": "Ready", "status": "False", "reason": "Training", "lastTransitionTime": stamp}
    comparison = {"base": 0.0, "tuned": 0.99}
    text = FinetuneStatus.model_validate(
        {
            "observedGeneration": 1,
            "phase": "Training",
            "conditions": [condition | {"message": "step 5 of 10", "observedGeneration": 1}],
            "stages": [{"name": "train", "state": "Running", "attempt": 2, "startedAt": stamp, "message": "training"}],
            "progress": {"percent": 50, "step": 5, "totalSteps": 10, "epoch": 1.5, "etaSeconds": 3, "updatedAt": stamp},
            "metrics": {"trainingLoss": 0.5, "validationLoss": 0.6, "learningRate": 1e-4, "gradNorm": 1.0},
            "history": [{"step": 5, "epoch": 1.5, "trainingLoss": 0.5}],
            "data": {"rows": {"train": 8, "dev": 2}, "tokens": 99, "reportUri": "s3://out/r", "warnings": ["no refs"]},
            "effectiveHyperparameters": {"epochs": 3, "learningRate": 2e-4, "scheduler": "linear", "packing": True},
            "resolved": {"modelUri": "s3://models/base", "modelRevision": "abc", "parameters": 9},
            "evaluation": {"rows": 2, "perplexity": comparison, "exactMatch": comparison, "samplesUri": "s3://out/s"},
            "artifact": {"uri": "s3://out/a", "manifestUri": "s3://out/m", "format": "adapter", "bytes": 9}
            | {"sha256": "0" * 64, "files": 3},
            "attempts": 2,
            "retries": 1,
            "failure": {"class": "Infrastructure", "reason": "S3Unreachable", "message": "no answer", "exitCode": 43},
        }
    ).to_json()
    assert server.write_status(stored, text)["status"] == text


def test_a_creation_rule_that_came_later_blocks_no_change_of_a_stored_object(server: ApiServer) -> None:
    older = server._replace(group="older.test")
    today = custom_resource_definition()
    today["metadata"]["name"] = f"{names.PLURAL}.{older.group}"
    today["spec"]["group"] = older.group
    today["spec"]["names"].pop("shortNames")
    yesterday = copy.deepcopy(today)
    schema = yesterday["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    schema["x-kubernetes-validations"] = []
    older.install(yesterday)
    body = older.create(a_body("old", hyperparameters={"evalSteps": 10}), store=True)

    older.install(today)
    wait_until(lambda: _is_refused(older, a_body("new", hyperparameters={"evalSteps": 10})))

    assert older.change(body, {"retryLimit": 1})["spec"]["retryLimit"] == 1
    older.delete(body)


def _is_refused(server: ApiServer, body: Body) -> bool:
    try:
        server.create(body)
    except Refusal:
        return True
    return False


def test_kubectl_get_ft_shows_the_story_in_columns(
    server: ApiServer, stored: Body, light_cluster: LightCluster
) -> None:
    condition = {"type": "Ready", "status": "False", "reason": "Training", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    progress = {"percent": 41, "step": 41, "totalSteps": 100}
    status = {"phase": "Training", "progress": progress, "metrics": {"trainingLoss": 0.81}, "conditions": [condition]}
    server.write_status(stored, status | {"observedGeneration": 1})

    header, row = kubectl(light_cluster, "get", "ft", "stored").splitlines()
    assert header.split() == ["NAME", "PHASE", "PROGRESS", "MODEL", "LOSS", "AGE"]
    assert row.split()[:-1] == ["stored", "Training", "41", "s3://models/base", "0.81"]
    wide = kubectl(light_cluster, "get", "ft", "stored", "-o", "wide").splitlines()[0].split()
    assert wide == ["NAME", "PHASE", "PROGRESS", "MODEL", "LOSS", "REASON", "COST", "ARTIFACT", "AGE"]


def test_a_rate_in_scientific_notation_is_a_number_through_kubectl(
    server: ApiServer, light_cluster: LightCluster
) -> None:
    manifest = f"""
apiVersion: {names.API_VERSION}
kind: {names.KIND}
metadata: {{name: scientific}}
spec:
  model: {{uri: "s3://models/base"}}
  datasets: [{{name: faq, uri: "s3://data/faq.jsonl"}}]
  output: {{uri: "s3://out/models"}}
  hyperparameters: {{learningRate: 1e-4}}
"""
    form = "jsonpath={.spec.hyperparameters.learningRate}"
    text = kubectl(light_cluster, "create", "--dry-run=server", "-f", "-", "-o", form, text=manifest)
    assert float(text) == 0.0001


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_api_server_takes_every_example(server: ApiServer, light_cluster: LightCluster, path: Path) -> None:
    text = "\n---\n".join(part for part in path.read_text().split("\n---\n") if f"kind: {names.KIND}" in part)
    lines = [line for line in text.splitlines() if not line.strip().startswith("namespace:")]
    assert kubectl(light_cluster, "create", "--dry-run=server", "-o", "name", "-f", "-", text="\n".join(lines))
