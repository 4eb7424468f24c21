"""The quickstart's model, rows and hyperparameters, prepared by the product itself: what the benchmarks train."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from finetune_api.run import RunSpec
from finetune_trainer.fit import Settings
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import Prepared, read_prepared
from finetune_trainer.store import open_store

from examples.quickstart import dates
from examples.quickstart.run import FINETUNE, base_model

ROWS = 4000


@dataclass(frozen=True)
class Workload:
    """A prepared run."""

    spec: RunSpec
    prepared: Prepared
    model: Path

    @property
    def settings(self) -> Settings:
        """The hyperparameters in force."""
        return Settings.of(self.prepared.index.effective_hyperparameters)


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
    prepare(spec, store, print)
    return Workload(spec, read_prepared(store, folder / "scratch"), model)
