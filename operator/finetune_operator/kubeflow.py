"""Reports in Kubeflow's words, which any Hugging Face Trainer sends where its environment names a server. Pure.

Source: Kubeflow Trainer, `TrainJobRuntimeStatus`; transformers, `KubeflowCallback`. The body has no name of the run in
it: whose it is follows from the token alone.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Annotated

from finetune_api.base import Model
from finetune_api.names import Activity, Stage
from finetune_api.progress import Metrics, Progress
from finetune_api.run import ProgressReport
from pydantic import AwareDatetime, Field

from finetune_operator.senders import Sender

DONE = 100
"""Percentage of the last report of a training; the first and the last are sent whatever time has gone by."""

MOST_METRICS = 256
"""Longest list of metrics. Source: Kubeflow Trainer, `TrainerStatus`."""

MOST_STEPS = 10**12
"""A step or epoch beyond it is no count, and is left out."""


class Reading(Model):
    """One number, as text."""

    name: str
    value: str


class TrainerStatus(Model):
    """What a trainer knows of itself."""

    progress_percentage: int | None = Field(default=None, ge=0, le=DONE)
    estimated_remaining_seconds: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metrics: list[Reading] = Field(default_factory=list, max_length=MOST_METRICS)
    last_updated_time: AwareDatetime
    """By the pod's own clock: it only puts the reports of one pod in order."""


class KubeflowReport(Model):
    """The whole body."""

    trainer_status: TrainerStatus


def as_report(said: TrainerStatus, sender: Sender, previous: ProgressReport | None) -> ProgressReport:
    """The report in our own words. What this one leaves out is as it was in the previous one of this attempt."""
    numbers = _numbers(said)
    before = previous.progress if previous and previous.progress else Progress()
    progress = _progress(said, numbers, before)
    metrics = Metrics(
        training_loss=numbers.get("loss", numbers.get("train_loss")),
        validation_loss=numbers.get("eval_loss"),
        learning_rate=numbers.get("learning_rate"),
        grad_norm=numbers.get("grad_norm"),
    )
    return ProgressReport(
        identity=sender.identity,
        stage=sender.stage,
        attempt=sender.attempt,
        activity=Activity.TRAINING if sender.stage is Stage.TRAIN else Activity.PREPARING,
        progress=progress,
        metrics=metrics if metrics != Metrics() else None,
    )


def _numbers(said: TrainerStatus) -> dict[str, float]:
    """Every metric that is a finite number."""
    found = {}
    for reading in said.metrics:
        try:
            value = float(reading.value)
        except ValueError:
            continue  # A word: nothing that could be shown as a number.
        if isfinite(value):
            found[reading.name] = value
    return found


def _progress(said: TrainerStatus, numbers: Mapping[str, float], before: Progress) -> Progress:
    percent = before.percent if said.progress_percentage is None else said.progress_percentage
    total = int(_count(numbers, "total_steps", before.total_steps))
    step = total if percent == DONE else int(_count(numbers, "current_step", before.step))
    return Progress(
        percent=percent,
        step=step,
        total_steps=total,
        epoch=round(_count(numbers, "current_epoch", before.epoch), 4),
        eta_seconds=said.estimated_remaining_seconds,
    )


def _count(numbers: Mapping[str, float], name: str, otherwise: float) -> float:
    value = numbers.get(name, -1.0)
    return value if 0 <= value <= MOST_STEPS else otherwise
