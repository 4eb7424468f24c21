"""Merging a trainer's report into the status, no more often than the status may be written. Pure."""

from datetime import timedelta

from finetune_api.names import Activity, ConditionType, Stage
from finetune_api.status import FinetuneStatus

from finetune_operator import stages
from finetune_operator.conditions import TRUE, set_condition
from finetune_operator.observed import Job, Report


def merge_report(
    status: FinetuneStatus, report: Report | None, job: Job, interval: timedelta
) -> tuple[FinetuneStatus, timedelta | None]:
    """The status with the newest report of this attempt, and when to look again if it came too early to be written.

    A report that is in the status already (same time of arrival) changes nothing. A change of activity is always news.
    """
    if report is None or (report.body.stage, report.body.attempt) != (job.stage, job.attempt):
        return status, None
    written_at = status.progress.updated_at if status.progress else None
    if written_at and written_at >= report.received_at:
        return _with_activity(status, report, job), None
    if written_at and report.received_at - written_at < interval and not _is_news(status, report, job):
        return _with_activity(status, report, job), interval - (report.received_at - written_at)
    return _merged(_with_activity(status, report, job), report), None


def _is_news(status: FinetuneStatus, report: Report, job: Job) -> bool:
    entry = stages.find(status, job.stage)
    return report.body.result is not None or entry is None or entry.message != report.body.activity


def _merged(status: FinetuneStatus, report: Report) -> FinetuneStatus:
    body = report.body
    if body.progress is None:
        return status
    return status.model_copy(
        update={
            "progress": body.progress.model_copy(update={"updated_at": report.received_at}),
            "metrics": body.metrics or status.metrics,
            "history": body.history or status.history,
        }
    )


def _with_activity(status: FinetuneStatus, report: Report, job: Job) -> FinetuneStatus:
    """The stage's message is what the trainer is doing; evaluating after the last step means that training is done."""
    entry = stages.find(status, job.stage)
    if entry is None:
        return status
    named = status.model_copy(
        update={
            "stages": [
                stage
                if stage.name is not job.stage
                else stage.model_copy(update={"message": report.body.activity.value})
                for stage in status.stages
            ]
        }
    )
    return _with_trained(named, report) if job.stage is Stage.TRAIN else named


def _with_trained(status: FinetuneStatus, report: Report) -> FinetuneStatus:
    if report.body.activity is not Activity.PUBLISHING:
        return status
    conditions = set_condition(
        status.conditions,
        ConditionType.TRAINED,
        TRUE,
        "StepsDone",
        "every optimizer step is done",
        generation=max(status.observed_generation, 0),
        now=report.received_at,
    )
    return status.model_copy(update={"conditions": conditions})
