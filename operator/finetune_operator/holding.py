"""How long the train pods of the newest attempt have held GPUs: also while a gang gathers, and while pods leave. Pure.

`status.activeSeconds`, which the deadline counts, is from the start of the last pod to the end of training alone.
"""

from datetime import datetime, timedelta

from finetune_api.names import Stage, StageState
from finetune_api.status import FinetuneStatus, StageStatus

from finetune_operator import stages
from finetune_operator.steps import Run

NOTED_AFTER_SECONDS = 60
"""Pod-seconds of a gang that gathers which are worth a write."""

LEAVING_MARGIN = timedelta(seconds=60)
"""Longest time that a pod may take to be gone beyond its grace period; more is the time that nobody looked."""


def gpu_seconds(run: Run, counted_seconds: int) -> int:
    """What the newest attempt has used; `counted_seconds` of `status.activeSeconds` are those of earlier ones."""
    trainer, entry = run.finetune.spec.trainer, stages.find(run.status, Stage.TRAIN)
    seconds = stages.active_seconds(run.status, run.now) - counted_seconds + _leaving_seconds(run, entry)
    gathered = entry.gathered_seconds if entry else 0
    return (max(0, seconds) * trainer.nodes + gathered) * trainer.gpus_per_node


def noted(run: Run, status: FinetuneStatus) -> FinetuneStatus:
    """The status with what pods tell of it only as long as they are there."""
    entry = stages.find(status, Stage.TRAIN)
    if entry is None:
        return status
    changes = {"left_at": _departure(run, entry), "gathered_seconds": _gathered(run, entry)}
    return stages.replace(status, entry.model_copy(update=changes))


def _departure(run: Run, entry: StageStatus) -> datetime | None:
    """When a stopped attempt had left, once it has."""
    has_left = entry.state is StageState.STOPPED and not run.observed.active_pod
    return _left_at(run, entry) if has_left else entry.left_at


def _left_at(run: Run, entry: StageStatus) -> datetime | None:
    """When its pods were gone, or now while they are not; None where there were none."""
    if entry.started_at is None or entry.finished_at is None:
        return None
    grace = timedelta(seconds=run.finetune.spec.trainer.termination_grace_period_seconds)
    return entry.left_at or min(run.now, entry.finished_at + grace + LEAVING_MARGIN)


def _leaving_seconds(run: Run, entry: StageStatus | None) -> int:
    """How long the pods of a stopped attempt have held their GPUs since they were told to leave."""
    if entry is None or entry.state is not StageState.STOPPED or entry.finished_at is None:
        return 0
    left = _left_at(run, entry)
    return max(0, int((left - entry.finished_at).total_seconds())) if left else 0


def _gathered(run: Run, entry: StageStatus) -> int:
    """Pod-seconds for which pods of a gang have waited for the last one to start."""
    job = run.observed.job(Stage.TRAIN, entry.attempt)
    if job is None:
        return entry.gathered_seconds
    seconds = job.gathered_seconds(entry.finished_at or run.now)
    is_final = job.has_started or entry.finished_at is not None
    grown = seconds - entry.gathered_seconds
    return seconds if grown >= (1 if is_final else NOTED_AFTER_SECONDS) else entry.gathered_seconds
