"""Runs that are interrupted, with real pods and a real S3: what was learned is not lost, and nothing is done twice."""

import json
from typing import Any

import pytest

from tests.e2e.installed import NAMESPACE, Product, a_run

pytestmark = pytest.mark.cluster

LONG = {"maxSteps": 6000, "learningRate": 0.001, "loggingSteps": 100, "saveSteps": 200}
"""Long enough to be interrupted twice, short enough to be waited for."""


def change(product: Product, name: str, **spec: Any) -> None:
    patch = json.dumps({"spec": spec})
    product.kubectl("patch", "finetune", name, "-n", NAMESPACE, "--type=merge", "-p", patch)


def saved_step(product: Product, name: str) -> int:
    """Step of the newest checkpoint that the status shows; 0 before there is one."""
    return int(product.finetune(name)["status"].get("checkpoint", {}).get("step", 0))


def pods_of(product: Product, name: str, stage: str = "train") -> list[dict[str, Any]]:
    selector = f"finetune-operator.io/name={name},finetune-operator.io/stage={stage}"
    return list(product.kubectl.get("pods", "-n", NAMESPACE, "-l", selector)["items"])


def test_a_run_that_is_suspended_and_then_loses_its_pod_ends_as_if_nothing_had_happened(product: Product) -> None:
    name = "interrupted"
    product.kubectl.apply(a_run(name, hyperparameters=LONG))

    def story() -> str:
        return product.story(name)

    product.eventually(lambda: saved_step(product, name) > 0, 300, story)
    change(product, name, suspend=True)
    product.eventually(lambda: product.finetune(name)["status"]["phase"] == "Suspended", 60, story)
    paused_at = saved_step(product, name)
    assert pods_of(product, name) == [], "a suspended run holds its GPU"

    change(product, name, suspend=False)
    product.eventually(lambda: saved_step(product, name) > paused_at, 120, story)
    status = product.finetune(name)["status"]
    assert status["attempts"] == 2, story()
    (pod,) = pods_of(product, name)
    product.kubectl("delete", "pod", pod["metadata"]["name"], "-n", NAMESPACE, "--wait=false")

    status = product.ended(name)
    assert status["phase"] == "Succeeded", story()
    assert (status["attempts"], status["restarts"], status["retries"]) == (3, 1, 0), story()
    steps = [row["step"] for row in status["history"]]
    assert steps == sorted(set(steps)), "a step was told twice"
    log = product.read_lines(f"{status['artifact']['uri']}/training_log.jsonl")
    told = [row["step"] for row in log]
    assert told == sorted(set(told)), "a step was trained twice, or is not told"
    assert set(range(100, 6001, 100)) <= set(told)


def test_a_cancelled_run_keeps_its_checkpoints_and_publishes_nothing(product: Product) -> None:
    name = "cancelled"
    product.kubectl.apply(a_run(name, hyperparameters=LONG | {"maxSteps": 1_000_000}))
    product.eventually(lambda: saved_step(product, name) > 0, 300, lambda: product.story(name))
    change(product, name, cancel=True)
    product.eventually(
        lambda: product.finetune(name)["status"]["phase"] == "Cancelled", 60, lambda: product.story(name)
    )
    assert pods_of(product, name) == []
    keys = product.keys_of(name)
    assert [key for key in keys if "/checkpoints/step-" in key and key.endswith("/manifest.json")]
    assert product.published_by(name) == []
