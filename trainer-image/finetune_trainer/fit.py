"""The training loop: one step after another, told as it goes. Nothing in a step waits for the device."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from finetune_api.resource import Optimizer, Scheduler
from finetune_api.status import EffectiveHyperparameters, HistoryRow, Metrics, Progress
from torch import Tensor

from finetune_trainer.errors import not_finite
from finetune_trainer.loss import LossModel
from finetune_trainer.optimizer import clip_gradients, make_optimizer, trained_parameters
from finetune_trainer.pack import micro_batches, step_rows
from finetune_trainer.prepared import TokenRows
from finetune_trainer.report import Reporter
from finetune_trainer.schedule import make_schedule


@dataclass(frozen=True)
class Settings:
    """The hyperparameters in force, none of them missing."""

    total_steps: int
    warmup_steps: int
    learning_rate: float
    scheduler: Scheduler
    optimizer: Optimizer
    weight_decay: float
    max_grad_norm: float
    rows_per_batch: int
    accumulation: int
    eval_steps: int | None
    """None where there are no dev rows."""
    logging_steps: int
    seed: int
    tokens_per_batch: int | None = None
    """Most tokens of a micro-batch, where the plan has a limit."""

    @property
    def effective_batch(self) -> int:
        """Rows per optimizer step."""
        return self.rows_per_batch * self.accumulation

    @classmethod
    def of(cls, effective: EffectiveHyperparameters) -> "Settings":
        """From what prepare found. Raises KeyError for a value it left out."""
        found: dict[str, Any] = effective.model_dump(exclude_none=True)
        return cls(
            total_steps=found["total_steps"],
            warmup_steps=found["warmup_steps"],
            learning_rate=found["learning_rate"],
            scheduler=Scheduler(found["scheduler"]),
            optimizer=Optimizer(found["optimizer"]),
            weight_decay=found["weight_decay"],
            max_grad_norm=found["max_grad_norm"],
            rows_per_batch=found["train_batch_size"],
            accumulation=found["gradient_accumulation_steps"],
            eval_steps=found.get("eval_steps"),
            logging_steps=found["logging_steps"],
            seed=found["seed"],
        )


@dataclass
class Interval:
    """What was trained since the last row of the curve; sums stay on the device."""

    loss: Tensor | None = None
    supervised: int = 0

    def add(self, loss: Tensor, supervised: int) -> None:
        """One micro-batch: its summed loss over so many tokens."""
        self.loss = loss if self.loss is None else self.loss + loss
        self.supervised += supervised

    def mean(self) -> float:
        """Loss per token. Here the host waits for the device."""
        return float(self.loss) / self.supervised if self.loss is not None else math.nan


@dataclass
class Curve:
    """The whole training log, and the newest numbers."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    progress: Progress = field(default_factory=Progress)

    def measured(self, **newest: float) -> None:
        """Take over the newest numbers; the others stay."""
        self.metrics = Metrics(**(self.metrics.model_dump() | newest))


@dataclass
class Clock:
    """Tokens per second of training, evaluation left out."""

    tokens: int = 0
    paused: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time spent training so far."""
        return max(time.monotonic() - self.started - self.paused, 1e-9)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time that is no training."""
        began = time.monotonic()
        yield
        self.paused += time.monotonic() - began

    def progress(self, step: int, total: int, epoch: float) -> Progress:
        """How far training is after `step`."""
        return Progress(
            percent=100 * step // total,
            step=step,
            total_steps=total,
            epoch=epoch,
            eta_seconds=round(self.seconds / step * (total - step)),
            tokens_per_second=round(self.tokens / self.seconds, 1),
        )


def fit(
    model: LossModel,
    train: TokenRows,
    settings: Settings,
    packed: bool,
    device: torch.device,
    validate: Callable[[], float],
    report: Reporter,
) -> Curve:
    """Train `model` in place on all steps; `validate()` is the loss over the dev rows.

    Raises RunError (Diverged) when a loss or a gradient norm is no number.
    """
    torch.manual_seed(settings.seed)
    model.train()
    parameters = trained_parameters(model)
    optimizer = make_optimizer(settings.optimizer, parameters, settings.learning_rate, settings.weight_decay)
    schedule = make_schedule(settings.scheduler, optimizer, settings.total_steps, settings.warmup_steps)
    steps_per_epoch = -(-len(train) // settings.effective_batch)
    curve, clock, interval = Curve(), Clock(), Interval()
    for step in range(1, settings.total_steps + 1):
        rows = step_rows(len(train), settings.effective_batch, settings.seed, step - 1)
        batches = micro_batches(train, rows, settings.rows_per_batch, packed, settings.tokens_per_batch)
        supervised = sum(batch.supervised for batch in batches)
        for batch in batches:
            loss = model(batch.to(device))
            (loss / supervised).backward()
            interval.add(loss.detach(), batch.supervised)
            clock.tokens += batch.tokens
        norm = clip_gradients(parameters, settings.max_grad_norm)
        rate = float(optimizer.param_groups[0]["lr"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.after_step()

        last = step == settings.total_steps
        epoch = round(step / steps_per_epoch, 4)
        training_loss = validation_loss = None
        if step % settings.logging_steps == 0 or last:
            training_loss = _finite(interval.mean(), "loss", step)
            gradient_norm = _finite(float(norm), "gradient norm", step)
            curve.measured(training_loss=training_loss, grad_norm=gradient_norm, learning_rate=rate)
            interval = Interval()
        curve.progress = clock.progress(step, settings.total_steps, epoch)
        if settings.eval_steps and (step % settings.eval_steps == 0 or last):
            with clock.stopped():
                validation_loss = _finite(validate(), "dev loss", step)
            curve.measured(validation_loss=validation_loss)
            schedule.after_evaluation(validation_loss)
        row = HistoryRow(step=step, epoch=epoch, training_loss=training_loss, validation_loss=validation_loss)
        _tell(report, curve, row)
    return curve


def _finite(number: float, what: str, step: int) -> float:
    if math.isfinite(number):
        return number
    raise not_finite(f"the {what} is {number} at step {step}")


def _tell(report: Reporter, curve: Curve, row: HistoryRow) -> None:
    """What this step has to say, to the training log, the operator and the run's log."""
    progress, metrics = curve.progress, curve.metrics
    report.progress(progress)
    if row.training_loss is None and row.validation_loss is None:
        return
    trained = row.training_loss is not None
    rate, norm = (metrics.learning_rate, metrics.grad_norm) if trained else (None, None)
    newest = Metrics(learning_rate=rate, grad_norm=norm)
    curve.rows.append(row.to_json() | newest.to_json() | progress.to_json())
    report.row(row, metrics)
    losses = {"loss": row.training_loss, "dev loss": row.validation_loss}
    report.say(
        f"step {row.step}/{progress.total_steps}", epoch=row.epoch, **losses, rate=rate, eta=progress.eta_seconds
    )
