"""Merging a trainer's report into the status, no more often than the status may be written. Pure."""

from datetime import datetime, timedelta

from finetune_api.curve import with_point
from finetune_api.names import Activity, ConditionType, Stage
from finetune_api.progress import CheckpointStatus, Metrics
from finetune_api.states import TRUE
from finetune_api.status import FinetuneStatus

from finetune_operator import stages
from finetune_operator.conditions import set_condition
from finetune_operator.observed import Job, Report


def merge_report(
    status: FinetuneStatus, report: Report | None, job: Job, *, interval: timedelta, generation: int, now: datetime
) -> tuple[FinetuneStatus, timedelta | None]:
    """The status with the newest report of this attempt, and when to look again if it came too early to be written.

    A report that is in the status already (same time of arrival) changes nothing. A change of activity is always news.
    """
    if report is None or (report.body.stage, report.body.attempt) != (job.stage, job.attempt):
        return status, None
    named = _with_activity(status, report, generation)
    written_at = status.progress.updated_at if status.progress else None
    if written_at is None or named != status or report.body.result:
        return _merged(named, report), None
    if written_at >= report.received_at:
        return named, None
    wait = interval - (now - written_at)
    return (named, wait) if wait > timedelta(0) else (_merged(named, report), None)


def _merged(status: FinetuneStatus, report: Report) -> FinetuneStatus:
    body = report.body
    status = status.model_copy(
        update={
            "plan": body.plan or status.plan,
            "best": body.best or status.best,
        }
    )
    status = with_checkpoint(status, body.checkpoint)
    if body.progress is None:
        return status
    return status.model_copy(
        update={
            "progress": body.progress.model_copy(update={"updated_at": report.received_at}),
            "metrics": body.metrics or status.metrics,
            "history": body.history or with_point(status.history, body.progress, body.metrics or Metrics()),
        }
    )


def with_checkpoint(status: FinetuneStatus, saved: CheckpointStatus | None) -> FinetuneStatus:
    """The status with the newest checkpoint, where a trainer has told of one: one that is further is progress."""
    if saved is None:
        return status
    is_further = saved.step > (status.checkpoint.step if status.checkpoint else 0)
    row = 0 if is_further else status.restarts_in_a_row
    return status.model_copy(update={"checkpoint": saved, "restarts_in_a_row": row})


def _with_activity(status: FinetuneStatus, report: Report, generation: int) -> FinetuneStatus:
    """The stage's message is what the trainer is doing; publishing means that training is done."""
    entry = stages.find(status, report.body.stage)
    if entry is None:
        return status
    named = stages.replace(status, entry.model_copy(update={"message": report.body.activity.value}))
    if (report.body.stage, report.body.activity) != (Stage.TRAIN, Activity.PUBLISHING):
        return named
    conditions = set_condition(
        status.conditions,
        ConditionType.TRAINED,
        TRUE,
        *stages.how_trained(report.body.progress or status.progress),
        generation=generation,
        now=report.received_at,
    )
    return named.model_copy(update={"conditions": conditions})


def back_to_checkpoint(status: FinetuneStatus) -> FinetuneStatus:
    """The status with what a further attempt goes on from: the newest checkpoint, or nothing where there is none."""
    saved, progress = status.checkpoint, status.progress
    if saved is None or progress is None:
        return status.model_copy(update={"progress": None, "metrics": None, "history": [], "best": None})
    if progress.step <= saved.step:
        return status
    share = saved.step / progress.step
    reached = {"step": saved.step, "percent": int(progress.percent * share), "epoch": round(progress.epoch * share, 4)}
    best = status.best if status.best and status.best.step <= saved.step else None
    return status.model_copy(
        update={
            "progress": progress.model_copy(update=reached | {"eta_seconds": None}),
            "metrics": None,
            "history": [row for row in status.history if row.step <= saved.step],
            "best": best,
        }
    )
