"""The hyperparameters in force, and training as it stands: what is told, saved and gone on from after each step."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from finetune_api.findings import EffectiveHyperparameters
from finetune_api.progress import HistoryRow, Metrics, Progress
from finetune_api.training import Optimizer, Scheduler

from finetune_trainer.checkpoint import Snapshot
from finetune_trainer.curve import Curve, Interval
from finetune_trainer.errors import not_finite
from finetune_trainer.parallel import Team
from finetune_trainer.patience import Patience
from finetune_trainer.report import Reporter
from finetune_trainer.trainee import Trainee, TraineeState


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
    save_steps: int
    patience: int | None
    """None where early stopping is off."""
    min_delta: float
    logging_steps: int
    seed: int
    tokens_per_batch: int | None = None
    """Most tokens of a micro-batch, where the plan has a limit."""
    devices: int = 1
    """Devices that the batch size counts for; a team of another size has the same effective batch."""

    @property
    def effective_batch(self) -> int:
        """Rows per optimizer step."""
        return self.rows_per_batch * self.accumulation * self.devices

    @classmethod
    def of(cls, effective: EffectiveHyperparameters) -> "Settings":
        """From what prepare found. Raises KeyError for a value it left out."""
        found: dict[str, Any] = effective.model_dump(exclude_none=True)
        stopping = found.get("early_stopping", {})
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
            save_steps=found["save_steps"],
            patience=stopping.get("patience"),
            min_delta=stopping.get("min_delta", 0.0),
            logging_steps=found["logging_steps"],
            seed=found["seed"],
            devices=found.get("devices", 1),
        )


@dataclass
class Loop:
    """Training as it stands after a step."""

    trainee: Trainee
    settings: Settings
    team: Team
    step: int = 0
    """Optimizer steps done."""
    told: int = 0
    """The newest of them that was logged and, where due, evaluated."""
    interval: Interval = field(default_factory=Interval)
    curve: Curve = field(default_factory=Curve)
    patience: Patience = field(default_factory=Patience)

    @property
    def is_over(self) -> bool:
        """All steps are done, or early stopping has seen enough."""
        settings = self.settings
        lost = settings.patience is not None and self.patience.stale >= settings.patience
        return lost or self.step >= settings.total_steps

    @property
    def is_to_be_saved(self) -> bool:
        """At each save step, at each new lowest dev loss, and at the end: publishing may be cut short too."""
        is_best = self.patience.best_step == self.step
        return self.step > 0 and (self.step % self.settings.save_steps == 0 or is_best or self.is_over)

    def look(self, progress: Progress, measure: Callable[[], float], report: Reporter) -> None:
        """Evaluate and log the newest step where that is due, and tell of it.

        `measure`, the loss on the dev rows, comes first: where a signal ends it, nothing has changed, and whoever goes
        on from here looks at this step again. Raises RunError (Diverged) for a number that is none.
        """
        training_loss = validation_loss = evaluation_seconds = None
        if self._is_to_be_evaluated:
            began = time.monotonic()
            validation_loss = self._finite(measure(), "dev loss")
            evaluation_seconds = round(time.monotonic() - began, 3)
            self._evaluated(validation_loss)
        if self.step % self.settings.logging_steps == 0 or self.is_over:
            training_loss = self._logged()
        done = {"percent": 100, "eta_seconds": 0} if self.is_over else {}
        self.curve.progress = progress.model_copy(update=done)
        self.told = self.step
        row = HistoryRow(
            step=self.step, epoch=progress.epoch, training_loss=training_loss, validation_loss=validation_loss
        )
        _tell(report, self.curve, row, self.patience, evaluation_seconds)

    def snapshot(self) -> Snapshot:
        """For a checkpoint; all ranks take it together, and the first has the tensors.

        Raises RunError (Diverged) where a number is none: nobody shall go on from there.
        """
        if self.interval.loss is not None:
            self._finite(self.interval.mean(self.team), "loss")
            self._finite(self.interval.gradient_norm, "gradient norm")
        if self.team.any(not self.trainee.is_finite()):
            raise not_finite(f"a trained weight is no number at step {self.step}")
        trainee = self.trainee.state(kept=self.team.is_first)
        state = {
            "told": self.told,
            "trainee": trainee.numbers,
            "interval": self.interval.state(self.team),
            "curve": self.curve.state(),
            "patience": self.patience.state(),
        }
        return Snapshot(self.step, trainee.weights, trainee.optimizer, state)

    def go_on_from(self, snapshot: Snapshot, report: Reporter) -> None:
        """Be what `snapshot` was taken of, and tell so."""
        state = snapshot.state
        self.trainee.restore(TraineeState(snapshot.weights, snapshot.optimizer, state["trainee"]))
        self.step, self.told = snapshot.step, state["told"]
        self.interval = Interval.of(state["interval"], self.trainee.device, self.team)
        if not self.team.is_first:
            # The random state is the first rank's; nobody else shall drop out the same.
            torch.manual_seed(self.settings.seed + self.team.rank + self.team.size * self.step)
        self.curve, self.patience = Curve.of(state["curve"]), Patience(**state["patience"])
        report.say(f"going on from the checkpoint of step {self.step}")
        report.resume(self.curve.history, self.curve.metrics, self.curve.progress, self.patience.best)

    @property
    def _is_to_be_evaluated(self) -> bool:
        every = self.settings.eval_steps
        return every is not None and (self.step % every == 0 or self.step == self.settings.total_steps)

    def _evaluated(self, loss: float) -> None:
        self.curve.measured(validation_loss=loss)
        self.patience.measured(self.step, loss, self.settings.min_delta)
        self.trainee.schedule.after_evaluation(loss)

    def _logged(self) -> float:
        """The mean loss since the last row; a new interval begins."""
        loss = self._finite(self.interval.mean(self.team), "loss")
        norm = self._finite(self.interval.gradient_norm, "gradient norm")
        self.curve.measured(training_loss=loss, grad_norm=norm, learning_rate=self.interval.rate)
        self.interval = Interval()
        return loss

    def _finite(self, number: float, what: str) -> float:
        if math.isfinite(number):
            return number
        raise not_finite(f"the {what} is {number} at step {self.step}")


def _tell(
    report: Reporter, curve: Curve, row: HistoryRow, patience: Patience, evaluation_seconds: float | None
) -> None:
    """What this step has to say, to the training log, the operator and the run's log."""
    progress, metrics = curve.progress, curve.metrics
    report.progress(progress)
    if row.training_loss is None and row.validation_loss is None:
        return
    trained = row.training_loss is not None
    rate, norm = (metrics.learning_rate, metrics.grad_norm) if trained else (None, None)
    newest = Metrics(learning_rate=rate, grad_norm=norm)
    took = {} if evaluation_seconds is None else {"evaluationSeconds": evaluation_seconds}
    curve.rows.append(row.to_json() | newest.to_json() | progress.to_json() | took)
    report.row(row, metrics, patience.best)
    losses = {"loss": row.training_loss, "dev loss": row.validation_loss}
    report.say(
        f"step {row.step}/{progress.total_steps}", epoch=row.epoch, **losses, rate=rate, eta=progress.eta_seconds
    )
