"""The steps that a story can come to, and the run that they are made from. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.names import ConditionType, FailureClass
from finetune_api.reasons import Reason
from finetune_api.resource import Finetune
from finetune_api.states import FALSE, Verdict
from finetune_api.status import Condition, ConditionStatus, Failure, FinetuneStatus

from finetune_operator.conditions import set_condition
from finetune_operator.observed import Observed
from finetune_operator.settings import Settings
from finetune_operator.verdict import Step


@dataclass(frozen=True)
class Run:
    """The arguments of `decide`, with the status as it grows."""

    finetune: Finetune
    observed: Observed
    settings: Settings
    now: datetime
    status: FinetuneStatus


def waiting(run: Run, reason: Reason, message: str, check_again: timedelta) -> Step:
    """Nothing to do until something happens, or `check_again` has gone by."""
    return Step(run.status, Verdict.WORKING, reason, message, check_again=max(check_again, timedelta(seconds=1)))


def held(run: Run, failure: Failure) -> Step:
    """Stopped until a person raises the limit that the failure names."""
    status = run.status.model_copy(update={"failure": failure})
    return Step(status, Verdict.HELD, failure.reason, failure.message)


def failed(run: Run, failure: Failure) -> Step:
    """Wrong in itself: over, for good."""
    status = run.status.model_copy(update={"failure": failure})
    if failure.failure_class is FailureClass.INVALID_DATA:
        changed = conditions_with(run, ConditionType.DATA_VALIDATED, FALSE, failure.reason, failure.message)
        status = status.model_copy(update={"conditions": changed})
    return Step(status, Verdict.FAILED, failure.reason, failure.message)


def conditions_with(
    run: Run, kind: ConditionType, value: ConditionStatus, reason: str, message: str
) -> list[Condition]:
    """The run's conditions with this one set."""
    generation = run.finetune.metadata.generation
    return set_condition(run.status.conditions, kind, value, reason, message, generation=generation, now=run.now)
