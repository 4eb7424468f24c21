"""Acceptance case 10: every hyperparameter of the loop works; determinism; what is reported."""

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.names import FailureClass, Stage
from finetune_api.training import Optimizer, Scheduler
from finetune_trainer.attention import rows_attended
from finetune_trainer.curve import Curve
from finetune_trainer.errors import RunError
from finetune_trainer.fit import fit
from finetune_trainer.log import Log
from finetune_trainer.loop import Settings
from finetune_trainer.loss import LossModel
from finetune_trainer.report import Reporter

from tests.trainer.decoders import a_decoder, some_rows
from tests.trainer.runs import a_run

SETTINGS = Settings(
    total_steps=6,
    warmup_steps=0,
    learning_rate=1e-2,
    scheduler=Scheduler.CONSTANT,
    optimizer=Optimizer.ADAMW,
    weight_decay=0.0,
    max_grad_norm=1.0,
    rows_per_batch=4,
    accumulation=1,
    eval_steps=None,
    save_steps=100,
    patience=None,
    min_delta=0.0,
    logging_steps=1,
    seed=0,
)
LOG = io.StringIO()
ROWS = some_rows((9, 4, 12, 4, 7, 6, 5, 8, 3, 10))


def trained(tmp_path: Path, losses: list[float] | None = None, packed: bool = True, **changes: Any) -> Curve:
    """Train a tiny Llama; `losses` are what the dev rows answer, one after another."""
    model, answers = a_decoder(), iter(losses or [])
    run = a_run(tmp_path, "hf://a/b", [{"name": "d", "uri": "s3://b/d.jsonl"}])
    report = Reporter(run, Stage.TRAIN, Log(stream=LOG))
    settings = replace(SETTINGS, **changes)
    with rows_attended(model) if packed else torch.enable_grad():
        return fit(LossModel(model, True), ROWS, settings, packed, torch.device("cpu"), lambda _: next(answers), report)


def losses(curve: Curve) -> list[float]:
    return [row["trainingLoss"] for row in curve.rows if "trainingLoss" in row]


def rates(curve: Curve) -> list[float]:
    return [row["learningRate"] for row in curve.rows if "learningRate" in row]


def test_the_same_seed_makes_the_same_curve_bit_for_bit(tmp_path: Path) -> None:
    assert losses(trained(tmp_path)) == losses(trained(tmp_path))


def test_another_seed_makes_another_order(tmp_path: Path) -> None:
    assert losses(trained(tmp_path)) != losses(trained(tmp_path, seed=1))


def test_packing_changes_no_loss(tmp_path: Path) -> None:
    assert losses(trained(tmp_path)) == pytest.approx(losses(trained(tmp_path, packed=False)), rel=1e-4)


def test_one_row_accumulated_four_times_is_a_batch_of_four_also_in_the_short_last_step(tmp_path: Path) -> None:
    four = losses(trained(tmp_path, rows_per_batch=4, accumulation=1))
    assert losses(trained(tmp_path, rows_per_batch=1, accumulation=4)) == pytest.approx(four, rel=1e-4)


@pytest.mark.parametrize("packed", [True, False])
def test_a_limit_in_tokens_cuts_micro_batches_and_changes_no_loss(tmp_path: Path, packed: bool) -> None:
    whole = losses(trained(tmp_path, packed=packed))
    assert losses(trained(tmp_path, packed=packed, tokens_per_batch=13)) == pytest.approx(whole, rel=1e-4)


def test_it_learns(tmp_path: Path) -> None:
    found = losses(trained(tmp_path, total_steps=60))
    assert found[-1] < 0.2 * found[0]


CHANGES: list[dict[str, Any]] = [
    {"learning_rate": 2e-2},
    {"scheduler": Scheduler.COSINE},
    {"warmup_steps": 3, "scheduler": Scheduler.CONSTANT_WITH_WARMUP},
    {"rows_per_batch": 2},
    {"accumulation": 2},
    {"weight_decay": 0.5},
    {"max_grad_norm": 0.001, "optimizer": Optimizer.SGD},
    {"optimizer": Optimizer.ADAFACTOR},
    {"optimizer": Optimizer.SGD},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "-".join(changes))
def test_every_setting_changes_the_curve(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert losses(trained(tmp_path, **changes)) != losses(trained(tmp_path))


def test_paging_without_a_gpu_is_told(tmp_path: Path) -> None:
    trained(tmp_path, optimizer=Optimizer.PAGED_ADAMW8BIT, total_steps=1)
    assert "paging needs a GPU" in LOG.getvalue()


def test_adam_differs_from_adamw_where_there_is_decay(tmp_path: Path) -> None:
    with_decay: dict[str, Any] = {"weight_decay": 0.5}
    adam = losses(trained(tmp_path, optimizer=Optimizer.ADAM, **with_decay))
    assert adam != losses(trained(tmp_path, optimizer=Optimizer.ADAMW, **with_decay))


def test_clipping_bounds_what_sgd_moves(tmp_path: Path) -> None:
    free = trained(tmp_path, optimizer=Optimizer.SGD, learning_rate=1.0, max_grad_norm=0.0)
    held = trained(tmp_path, optimizer=Optimizer.SGD, learning_rate=1.0, max_grad_norm=1e-6)
    norms = [row["gradNorm"] for row in held.rows]
    assert all(norm > 1e-3 for norm in norms)
    # Two epochs of three steps: a model that hardly moves has about the same loss in both.
    assert sum(losses(held)[3:]) == pytest.approx(sum(losses(held)[:3]), rel=0.05)
    assert sum(losses(free)[3:]) != pytest.approx(sum(losses(free)[:3]), rel=0.05)


def test_the_rate_in_the_log_is_that_of_the_step(tmp_path: Path) -> None:
    curve = trained(tmp_path, scheduler=Scheduler.LINEAR, warmup_steps=2)
    assert rates(curve) == pytest.approx([0.0, 0.005, 0.01, 0.0075, 0.005, 0.0025])


def test_rows_of_the_curve_come_every_logging_steps_and_at_the_end(tmp_path: Path) -> None:
    curve = trained(tmp_path, logging_steps=4)
    assert [row["step"] for row in curve.rows] == [4, 6]
    assert [row["epoch"] for row in curve.rows] == [1.3333, 2.0]


def test_a_logged_loss_is_the_mean_over_the_tokens_since_the_last_row(tmp_path: Path) -> None:
    frozen: dict[str, Any] = {"learning_rate": 1e-12, "total_steps": 3, "rows_per_batch": 4}
    single = trained(tmp_path, **frozen)
    whole = trained(tmp_path, logging_steps=3, **frozen)
    supervised = int(ROWS.supervised.sum())
    plain = trained(tmp_path, learning_rate=1e-12, total_steps=1, rows_per_batch=10)
    assert supervised > 0
    assert losses(whole) == pytest.approx(losses(plain), rel=1e-4)
    assert min(losses(single)) < losses(whole)[0] < max(losses(single))


def test_evaluations_come_every_eval_steps_and_at_the_end(tmp_path: Path) -> None:
    curve = trained(tmp_path, [3.0, 2.0], eval_steps=4, logging_steps=100)
    found = [(row["step"], row.get("validationLoss")) for row in curve.rows]
    assert found == [(4, 3.0), (6, 2.0)]
    assert curve.metrics.validation_loss == 2.0


def test_the_plateau_follows_the_dev_loss(tmp_path: Path) -> None:
    curve = trained(tmp_path, [1.0, 1.0, 1.0], eval_steps=2, scheduler=Scheduler.REDUCE_LR_ON_PLATEAU)
    assert rates(curve) == [0.01, 0.01, 0.01, 0.01, 0.005, 0.005]


def test_progress_ends_at_the_last_step_with_a_speed(tmp_path: Path) -> None:
    progress = trained(tmp_path).progress
    assert (progress.percent, progress.step, progress.total_steps, progress.eta_seconds) == (100, 6, 6, 0)
    assert progress.tokens_per_second is not None
    assert progress.tokens_per_second > 0


def test_a_loss_that_is_no_number_ends_the_run_as_diverged(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is (nan|inf) at step") as caught:
        trained(tmp_path, optimizer=Optimizer.SGD, learning_rate=1e30, max_grad_norm=0.0)
    assert caught.value.failure_class is FailureClass.DIVERGED


def test_a_dev_loss_that_is_no_number_ends_it_too(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="dev loss"):
        trained(tmp_path, [math.nan], eval_steps=1)
