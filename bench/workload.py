"""Prepared runs that the benchmarks train: the product's own prepare, over local files."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from finetune_api.run import RunSpec
from finetune_trainer.loop import Settings
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import Prepared, read_prepared
from finetune_trainer.store import open_store

from examples.quickstart import dates
from examples.quickstart.run import FINETUNE, base_model

ROWS = 4000

SHARED = Path(__file__).resolve().parents[2] / "shared"
STORIES, GSM8K = SHARED / "models" / "stories260k", SHARED / "data" / "gsm8k" / "train.jsonl"
"""A real tiny model and real rows, beside the repository."""


@dataclass(frozen=True)
class Workload:
    """A prepared run."""

    spec: RunSpec
    prepared: Prepared
    model: Path
    steps: int | None = None
    """Steps to train where they are not all."""

    @property
    def settings(self) -> Settings:
        """The hyperparameters in force."""
        settings = Settings.of(self.prepared.index.effective_hyperparameters)
        return replace(settings, total_steps=self.steps or settings.total_steps)

    def first(self, steps: int) -> "Workload":
        """The same, but its first steps alone."""
        return replace(self, steps=steps)


def quickstart_workload(folder: Path, threads: int, **hyperparameters: Any) -> Workload:
    """finetune.yaml over local files below `folder`; `hyperparameters` replace its own."""
    model = base_model()
    rows = folder / "train.jsonl"
    dates.write_rows(rows, ROWS)
    training = yaml.safe_load(FINETUNE.read_text(encoding="utf-8"))["spec"]
    training["model"]["uri"] = f"file://{model}"
    training["datasets"][0]["uri"] = f"file://{rows}"
    training["hyperparameters"] |= hyperparameters
    for field in ("storage", "trainer"):
        del training[field]
    return prepared_workload(folder, model, training, threads)


def gsm8k_workload(folder: Path, threads: int, method: dict[str, Any], rows: int, **hyperparameters: Any) -> Workload:
    """stories260k on the first `rows` rows of GSM8K, those left out that do not fit into `maxSeqLength`."""
    training = {
        "model": {"uri": f"file://{STORIES}"},
        "datasets": [{"name": "gsm8k", "uri": f"file://{GSM8K}", "maxRows": rows}],
        "split": {"trainPercentage": 90, "devPercentage": 10},
        "promptTemplate": "Question: <<question>>\nAnswer: ",
        "completionTemplate": "<<answer>>",
        "method": method,
        "hyperparameters": {"overlong": "drop", **hyperparameters},
        "output": {"uri": "s3://unused/models"},
    }
    return prepared_workload(folder, STORIES, training, threads)


def prepared_workload(folder: Path, model: Path, training: dict[str, Any], threads: int) -> Workload:
    """A spec, prepared below `folder`."""
    spec = RunSpec.model_validate(
        {
            "identity": {"namespace": "bench", "name": "steps", "uid": "bench"},
            "training": training,
            "outputUri": f"file://{folder / 'out'}",
            "scratchDirectory": str(folder / "scratch"),
            "threads": threads,
        }
    )
    store = open_store(spec.output_uri, spec.storage)
    prepare(spec, store, lambda *_, **__: None)
    return Workload(spec, read_prepared(store, folder / "scratch"), model)
