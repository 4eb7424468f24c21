"""A run that was stopped and went on ends in the same weights as one that was not, bit for bit, and tells the same."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.names import FailureClass, Stage
from finetune_api.run import StorageAccess
from finetune_api.training import Lora, Optimizer, Scheduler
from finetune_trainer.adapter import attach_adapter
from finetune_trainer.attention import rows_attended
from finetune_trainer.checkpoint import Checkpoints, Origin
from finetune_trainer.curve import Curve
from finetune_trainer.errors import RunError, Termination
from finetune_trainer.fit import fit
from finetune_trainer.fused_lora import fuse_adapters
from finetune_trainer.log import Log
from finetune_trainer.loop import Settings
from finetune_trainer.loss import LossModel
from finetune_trainer.report import Reporter
from finetune_trainer.store import FileStore, Store, open_store
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
    curve: Curve
    log: str
    reached: dict[str, Any]
    """The newest checkpoint and the best dev loss, as reported."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.curve.rows


@dataclass
class Workshop:
    """Trainings that share a store; each has a fresh model, as a fresh process has."""

    folder: Path
    method: str = "full"
    stream: io.StringIO = field(default_factory=io.StringIO)

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
        model = a_decoder()
        if self.method == "lora":
            fuse_adapters(attach_adapter(model, Lora(rank=4, alpha=8, dropout=0.2), seed=3).get_base_model())
        run = a_run(self.folder, "hf://a/b", [{"name": "d", "uri": "s3://b/d.jsonl"}])
        report = Reporter(run, Stage.TRAIN, Log(stream=self.stream))
        scratch = self.folder / "scratch"
        checkpoints = Checkpoints(
            store or self.store, scratch, replace(ORIGIN, **origin), keep, report.checkpoint, report.log
        )
        loss = LossModel(model, True)
        with rows_attended(model):
            curve = fit(
                loss, ROWS, settings, True, torch.device("cpu"), lambda _: validate(), report, checkpoints, stop
            )
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
        return Outcome(weights, curve, self.stream.getvalue(), report.reached)

    @property
    def saved(self) -> list[int]:
        """The steps of the checkpoints there are."""
        keys = [item.key for item in self.store.list("checkpoints/") if item.key.endswith("/manifest.json")]
        return sorted(int(key.split("-")[1]) for key in keys)


class StoppedAfter(StopSignal):
    """SIGTERM as it comes in the middle of a step, which is finished all the same."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def check(self, agree: Callable[[bool], bool] = bool) -> None:
        if self._is_held:
            if self.left == 0:
                self(15, None)
            self.left -= 1
        super().check(agree)


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
        shop.train(settings, stop=StoppedAfter(step))
    again = shop.train(settings, writer="second00", attempt=2)
    assert f"going on from the checkpoint of step {step}" in again.log
    assert_same(whole, again)


def answers(*losses: float) -> Callable[[], float]:
    """Dev losses, one after another."""
    left = iter(losses)
    return lambda: next(left)


def test_the_interval_that_a_stop_cuts_in_two_is_logged_as_one(tmp_path: Path) -> None:
    """Step 5 lies between the log lines of steps 3 and 6."""
    shop = Workshop(tmp_path)
    with pytest.raises(Termination):
        shop.train(stop=StoppedAfter(5))
    again = shop.train(writer="second00", attempt=2)
    assert [row["step"] for row in again.rows] == [3, 6, 9, 10]


def test_a_stop_during_evaluation_saves_the_step_and_evaluates_it_again(tmp_path: Path) -> None:
    settings = replace(TEN, eval_steps=5)
    whole = Workshop(tmp_path / "whole").train(settings, answers(2.0, 1.0))
    shop, stop = Workshop(tmp_path / "parts"), StopSignal()

    def told_to_leave() -> float:
        stop(15, None)  # Raises at once: an evaluation may take longer than a pod has.
        return 0.0

    with pytest.raises(Termination):
        shop.train(settings, told_to_leave, stop)
    assert shop.saved == [5]
    again = shop.train(settings, answers(2.0, 1.0), writer="second00", attempt=2)
    assert_same(whole, again)
    assert [row["step"] for row in again.rows if "validationLoss" in row] == [5, 10]


def test_a_stop_while_the_last_step_is_saved_lets_it_be_saved(tmp_path: Path) -> None:
    stop = StopSignal()

    class TellingStore(FileStore):
        def put_bytes(self, key: str, data: bytes) -> None:
            if key.startswith("checkpoints/step-10-"):
                stop(15, None)
            super().put_bytes(key, data)

    shop = Workshop(tmp_path)
    with pytest.raises(Termination):
        shop.train(stop=stop, store=TellingStore(tmp_path / "out"))
    assert shop.saved == [10]


def test_a_signal_in_the_middle_of_a_step_waits_for_its_end(tmp_path: Path) -> None:
    shop, stop = Workshop(tmp_path), StopSignal()
    seen: list[bool] = []

    class Signalled(torch.autograd.graph.saved_tensors_hooks):
        """Sends the signal while the first forward pass saves what the backward pass needs."""

        def __init__(self) -> None:
            super().__init__(self.pack, lambda tensor: tensor)

        def pack(self, tensor: torch.Tensor) -> torch.Tensor:
            if not seen:
                seen.append(True)
                stop(15, None)
            return tensor

    with pytest.raises(Termination), Signalled():
        shop.train(stop=stop)
    assert shop.saved == [1]
    assert_same(Workshop(tmp_path / "whole").train(), shop.train(writer="second00", attempt=2))


def test_told_to_leave_before_the_first_step_nothing_is_saved(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    with pytest.raises(Termination):
        shop.train(stop=StoppedAfter(0))
    assert shop.saved == []


def test_a_store_that_is_gone_when_told_to_leave_is_told_and_changes_nothing(tmp_path: Path) -> None:
    class ClosedStore(FileStore):
        def put_file(self, key: str, path: Path) -> None:
            raise RunError(FailureClass.INFRASTRUCTURE, "StorageUnavailable", "S3 does not answer")

    shop = Workshop(tmp_path)
    with pytest.raises(Termination):
        shop.train(stop=StoppedAfter(2), store=ClosedStore(tmp_path / "out"))
    assert "step 2 could not be saved: StorageUnavailable: S3 does not answer" in shop.stream.getvalue()


@pytest.mark.parametrize(("every", "saved"), [(4, [8, 10]), (5, [5, 10]), (100, [10])])
def test_checkpoints_come_every_save_steps_and_at_the_end(tmp_path: Path, every: int, saved: list[int]) -> None:
    shop = Workshop(tmp_path)
    outcome = shop.train(replace(TEN, save_steps=every))
    assert shop.saved == saved
    assert outcome.reached["checkpoint"].step == 10


def test_save_total_limit_is_how_many_are_kept(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    shop.train(replace(TEN, save_steps=1), keep=4)
    assert shop.saved == [7, 8, 9, 10]


def test_each_new_lowest_dev_loss_is_saved_and_the_best_is_kept(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    outcome = shop.train(replace(TEN, eval_steps=2), answers(3.0, 1.0, 2.0, 1.5, 1.2), keep=1)
    assert shop.saved == [4, 10]
    assert (outcome.reached["best"].step, outcome.reached["best"].validation_loss) == (4, 1.0)


EARLY = replace(TEN, eval_steps=1, patience=2)


def test_training_stops_once_the_dev_loss_has_not_fallen_so_often(tmp_path: Path) -> None:
    outcome = Workshop(tmp_path).train(EARLY, answers(3.0, 2.0, 2.5, 1.0, 1.5, 1.0))
    assert [row["step"] for row in outcome.rows] == [1, 2, 3, 4, 5, 6]
    assert "trainingLoss" in outcome.rows[-1]
    assert (outcome.curve.progress.step, outcome.curve.progress.percent) == (6, 100)


def test_what_falls_by_no_more_than_min_delta_counts_as_not_fallen_and_is_the_best_all_the_same(tmp_path: Path) -> None:
    outcome = Workshop(tmp_path).train(replace(EARLY, min_delta=0.5), answers(3.0, 2.75, 2.5))
    assert outcome.curve.progress.step == 3
    assert outcome.reached["best"].step == 3


def test_with_early_stopping_the_best_weights_are_left_and_else_the_last(tmp_path: Path) -> None:
    constant = replace(EARLY, scheduler=Scheduler.CONSTANT, warmup_steps=0)
    early = Workshop(tmp_path / "early").train(constant, answers(3.0, 2.0, 2.5, 2.6))
    two = Workshop(tmp_path / "two").train(replace(constant, eval_steps=None, total_steps=2))
    last = Workshop(tmp_path / "last").train(
        replace(constant, patience=None, total_steps=4), answers(3.0, 2.0, 2.5, 2.6)
    )
    assert "the weights of step 2 are taken" in early.log
    assert all(torch.equal(weight, two.weights[name]) for name, weight in early.weights.items())
    assert not torch.equal(last.weights["lm_head.weight"], early.weights["lm_head.weight"])


def test_patience_goes_on_where_it_stopped(tmp_path: Path) -> None:
    losses = (3.0, 2.0, 2.5, 2.6)
    whole = Workshop(tmp_path / "whole").train(EARLY, answers(*losses))
    shop = Workshop(tmp_path / "parts")
    with pytest.raises(Termination):
        shop.train(EARLY, answers(*losses), stop=StoppedAfter(3))
    again = shop.train(EARLY, answers(*losses[3:]), writer="second00", attempt=2)
    assert again.curve.progress.step == 4
    assert_same(whole, again)


def test_a_run_that_had_stopped_early_stays_stopped(tmp_path: Path) -> None:
    """Its pod was killed while it published."""
    shop = Workshop(tmp_path)
    first = shop.train(EARLY, answers(2.0, 2.5, 2.6))
    again = shop.train(EARLY, answers(), writer="second00", attempt=2)
    assert_same(first, again)


def test_the_plateau_goes_on_where_it_stopped(tmp_path: Path) -> None:
    settings = replace(TEN, eval_steps=2, logging_steps=1, scheduler=Scheduler.REDUCE_LR_ON_PLATEAU, warmup_steps=0)
    losses = (2.0, 2.0, 1.0, 1.5, 1.6)
    whole = Workshop(tmp_path / "whole").train(settings, answers(*losses))
    shop = Workshop(tmp_path / "parts")
    with pytest.raises(Termination):
        shop.train(settings, answers(*losses), stop=StoppedAfter(5))
    assert_same(whole, shop.train(settings, answers(*losses[2:]), writer="second00", attempt=2))


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    """The loss and the gradient of step 1 are numbers; the weights after it are none any more."""
    shop = Workshop(tmp_path)
    wild = replace(
        TEN,
        optimizer=Optimizer.SGD,
        scheduler=Scheduler.CONSTANT,
        warmup_steps=0,
        learning_rate=1e40,
        max_grad_norm=1e3,
        save_steps=1,
        logging_steps=100,
    )
    with pytest.raises(RunError, match="at step 1") as caught:
        shop.train(wild)
    assert caught.value.failure_class is FailureClass.DIVERGED
    assert shop.saved == []


def test_a_loss_that_is_no_number_is_seen_at_the_save_though_no_log_line_is_due(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    wild = replace(TEN, optimizer=Optimizer.SGD, learning_rate=1e30, max_grad_norm=0.0, save_steps=4, logging_steps=100)
    with pytest.raises(RunError, match=r"is (nan|inf) at step 4") as caught:
        shop.train(wild)
    assert caught.value.failure_class is FailureClass.DIVERGED
    assert shop.saved == []
