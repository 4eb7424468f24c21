"""One decision after another about the same Finetune: what tests of `decide` begin with."""

from datetime import timedelta
from typing import Any

from finetune_api.names import ConditionType, Stage
from finetune_api.status import FinetuneStatus, StageStatus
from finetune_operator.conditions import condition_of
from finetune_operator.decide import Decision, decide
from finetune_operator.observed import Job, JobState, Observed, Pod, Report

from tests.builders import NOON, a_finetune, a_job, a_pod, a_result, some_settings

PREPARE, TRAIN = Stage.PREPARE, Stage.TRAIN
RUNNING, COMPLETE, FAILED = JobState.RUNNING, JobState.COMPLETE, JobState.FAILED

A_POD = a_pod(phase="Running", started_at=NOON)
PREPARED = a_job(PREPARE, 1, COMPLETE, a_pod(phase="Succeeded", message=a_result(PREPARE).to_message()))


def decided(
    status: FinetuneStatus | None,
    *jobs: Job,
    seconds: float = 0,
    report: Report | None = None,
    orphans: tuple[Pod, ...] = (),
    readings: tuple[Job, ...] = (),
    **spec: Any,
) -> Decision:
    """One decision, `seconds` after noon."""
    observed = Observed(jobs=jobs, report=report, orphans=orphans, readings=readings)
    return decide(a_finetune(status=status, **spec), observed, some_settings(), NOON + timedelta(seconds=seconds))


def training(attempt: int = 1) -> FinetuneStatus:
    """The status while the train pod runs, since noon."""
    status = decided(decided(None).status, PREPARED).status
    return decided(status, PREPARED, a_job(TRAIN, attempt, RUNNING, A_POD)).status


def told(status: FinetuneStatus, kind: ConditionType) -> tuple[str, str]:
    """Status and reason of a condition."""
    condition = condition_of(status, kind)
    assert condition is not None
    return condition.status.value, condition.reason


def reason_of(status: FinetuneStatus) -> str:
    """Why it is ready or not."""
    return told(status, ConditionType.READY)[1]


def train_entry(status: FinetuneStatus) -> StageStatus:
    """What the status says of the train stage."""
    return next(entry for entry in status.stages if entry.name is TRAIN)
