"""A run that was stopped and went on ends in the same weights as one that was not, bit for bit, and tells the same."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.names import Stage
from finetune_api.resource import Lora, Optimizer, Scheduler
from finetune_api.run import StorageAccess
from finetune_trainer.adapter import attach_adapter
from finetune_trainer.attention import rows_attended
from finetune_trainer.checkpoint import Checkpoints, Origin
from finetune_trainer.errors import Termination
from finetune_trainer.fit import fit
from finetune_trainer.fused_lora import fuse_adapters
from finetune_trainer.log import Log
from finetune_trainer.loop import Settings
from finetune_trainer.loss import LossModel
from finetune_trainer.report import Reporter
from finetune_trainer.store import Store, open_store
from finetune_trainer.termination import StopSignal

from tests.trainer.decoders import a_decoder
from tests.trainer.runs import a_run
from tests.trainer.test_fit import ROWS, SETTINGS

TEN = replace(SETTINGS, total_steps=10, save_steps=100, logging_steps=3, scheduler=Scheduler.COSINE, warmup_steps=2)
ORIGIN = Origin("first000", 1, "digest", {"threads": 1})


@dataclass
class Outcome:
    """What a training left."""

    weights: dict[str, torch.Tensor]
    rows: list[dict[str, Any]]
    log: str
    steps: list[int]
    """The steps whose dev loss was asked for, by the number of evaluations."""


@dataclass
class Workshop:
    """Trainings that share a store; each has a fresh model, as a fresh process has."""

    folder: Path
    method: str = "full"

    @property
    def store(self) -> Store:
        return open_store(f"file://{self.folder / 'out'}", StorageAccess())

    def train(
        self,
        settings: Settings = TEN,
        validate: Callable[[], float] = lambda: 1.0,
        stop: StopSignal | None = None,
        store: Store | None = None,
        keep: int = 2,
        **origin: Any,
    ) -> Outcome:
        """Train until the end, or until `stop` says so."""
        model, stream = a_decoder(), io.StringIO()
        if self.method == "lora":
            fuse_adapters(attach_adapter(model, Lora(rank=4, alpha=8, dropout=0.2), seed=3).get_base_model())
        run = a_run(self.folder, "hf://a/b", [{"name": "d", "uri": "s3://b/d.jsonl"}])
        report = Reporter(run, Stage.TRAIN, Log(stream=stream))
        scratch = self.folder / "scratch"
        checkpoints = Checkpoints(
            store or self.store, scratch, replace(ORIGIN, **origin), keep, report.checkpoint, report.log
        )
        loss = LossModel(model, True)
        with rows_attended(model):
            curve = fit(loss, ROWS, settings, True, torch.device("cpu"), validate, report, checkpoints, stop)
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
        return Outcome(weights, curve.rows, stream.getvalue(), [])


def stopped_after(step: int) -> StopSignal:
    """A signal that comes in the middle of so many steps; the step is finished all the same."""
    stop, counted = StopSignal(), [0]
    plain = stop.check

    def check() -> None:
        if counted[0] == step:
            stop._came = True
        counted[0] += 1
        plain()

    stop.check = check  # type: ignore[method-assign]
    return stop


def told(outcome: Outcome) -> list[tuple[Any, ...]]:
    """The training log without what depends on the time of day."""
    return [
        tuple(row.get(key) for key in ("step", "epoch", "trainingLoss", "validationLoss", "learningRate", "gradNorm"))
        for row in outcome.rows
    ]


def assert_same(one: Outcome, other: Outcome) -> None:
    assert one.weights.keys() == other.weights.keys()
    for name, weight in one.weights.items():
        assert torch.equal(weight, other.weights[name]), name
    assert told(one) == told(other)


CASES = [
    ("full", Optimizer.ADAMW),
    ("full", Optimizer.ADAFACTOR),
    ("full", Optimizer.SGD),
    ("lora", Optimizer.ADAMW),
    ("lora", Optimizer.ADAFACTOR),
]


@pytest.mark.parametrize(("method", "optimizer"), CASES)
@pytest.mark.parametrize("step", [1, 5])
def test_ten_steps_are_five_and_five_more_bit_for_bit(
    tmp_path: Path, method: str, optimizer: Optimizer, step: int
) -> None:
    settings = replace(TEN, optimizer=optimizer)
    whole = Workshop(tmp_path / "whole", method).train(settings)
    shop = Workshop(tmp_path / "parts", method)
    with pytest.raises(Termination):
        shop.train(settings, stop=stopped_after(step))
    again = shop.train(settings, writer="second00", attempt=2)
    assert f"going on from the checkpoint of step {step}" in again.log
    assert_same(whole, again)
