"""How a run stands after a pass, and what that means for its conditions. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.names import STATUS_MESSAGE_LENGTH, ConditionType, Stage
from finetune_api.states import VERDICT_CONDITIONS, VERDICT_TYPES, Verdict
from finetune_api.status import FinetuneStatus
from finetune_api.words import one_line, shortened

from finetune_operator.bounded import bounded
from finetune_operator.conditions import is_true, phase_of, set_condition
from finetune_operator.observed import Job


@dataclass(frozen=True)
class Turn:
    """A turn of the story that is worth an Event."""

    warning: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Attempt:
    """One try at a stage: a Job."""

    stage: Stage
    number: int


@dataclass(frozen=True)
class Step:
    """One step of the story: the status so far, and what it comes to."""

    status: FinetuneStatus
    verdict: Verdict
    reason: str
    message: str
    start: Attempt | None = None
    read: Attempt | None = None
    stop: tuple[Job, ...] = ()
    check_again: timedelta | None = None


def is_over(status: FinetuneStatus) -> bool:
    """True when nothing more can happen: succeeded, or failed for good."""
    held = is_true(status, ConditionType.SUSPENDED)
    return is_true(status, ConditionType.SUCCEEDED) or (is_true(status, ConditionType.STALLED) and not held)


def concluded(step: Step, generation: int, now: datetime) -> FinetuneStatus:
    """The status with the conditions and the phase that the step comes to."""
    conditions, message = step.status.conditions, shortened(one_line(step.message), STATUS_MESSAGE_LENGTH)
    for kind, value in zip(VERDICT_TYPES, VERDICT_CONDITIONS[step.verdict], strict=True):
        conditions = set_condition(conditions, kind, value, step.reason, message, generation=generation, now=now)
    status = step.status.model_copy(update={"conditions": conditions, "observed_generation": generation})
    return bounded(status.model_copy(update={"phase": phase_of(status)}))
