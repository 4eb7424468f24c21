"""Fixtures of the end-to-end tests, and the runs that they look at."""

import json
from typing import Any

import pytest

from tests.e2e.installed import BUCKET, GANG_STEPS, NAMESPACE, POD, ROWS, Product, a_run, product

__all__ = ["product", "runs"]

LONG = {"maxSteps": 3000, "learningRate": 0.001, "loggingSteps": 100, "saveSteps": 200}
"""Long enough to be interrupted twice, short enough to be waited for."""

RUNS: dict[str, dict[str, Any]] = {
    "cancelled": {"hyperparameters": LONG | {"maxSteps": 1_000_000}},
    "deleted": {
        "hyperparameters": {"maxSteps": 1_000_000, "loggingSteps": 1},
        "output": {"uri": f"s3://{BUCKET}/out", "deletionPolicy": "Delete"},
    },
    "alone": {"hyperparameters": GANG_STEPS | {"trainBatchSize": 4}},
    "interrupted": {"hyperparameters": LONG, "suspend": True},
    "straight": {},
    "full": {"method": {"type": "full"}, "datasets": [{"name": "rows", "uri": "configmap://rows/rows.jsonl"}]},
    "broken-data": {"datasets": [{"name": "rows", "uri": f"s3://{BUCKET}/broken.jsonl"}]},
    "no-volume": {"datasets": [{"name": "rows", "uri": "pvc://absent/rows.jsonl"}]},
    "no-gpu": {"trainer": POD | {"gpusPerNode": 1, "gpuResource": "example.com/gpu"}},
    "no-file": {"datasets": [{"name": "rows", "uri": f"s3://{BUCKET}/nowhere.jsonl"}]},
    "no-model": {"model": {"uri": f"s3://{BUCKET}/nothing"}},
    "wrong-keys": {"storage": {"endpoint": "http://s3.s3.svc:7070", "credentialsSecretRef": {"name": "wrong"}}},
    "no-secret": {"storage": {"endpoint": "http://s3.s3.svc:7070", "credentialsSecretRef": {"name": "absent"}}},
    "no-s3": {"storage": {"endpoint": "http://s3.s3.svc:9", "credentialsSecretRef": {"name": "s3"}}},
}
"""What is applied, by name. The first two go on until the first tests stop them: each takes a processor."""


@pytest.fixture(scope="session")
def runs(product: Product) -> Product:
    """Every run, applied at once: their pods start while the first tests wait."""
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    meta = {"name": "rows", "namespace": NAMESPACE}
    product.kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"rows.jsonl": text}})
    for name, spec in RUNS.items():
        product.kubectl.apply(a_run(name, **spec))
    return product
