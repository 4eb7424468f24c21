"""What a user allows: how long a pod may take to start, how long pods may train, and what that may cost. Pure.

A run that reaches one is held, not failed: whoever raises the limit lets it go on.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.names import FailureClass, Stage, StageState
from finetune_api.reasons import Reason
from finetune_api.status import Failure, FinetuneStatus

from finetune_operator import budget, guards, stages
from finetune_operator.attempts import a_failure
from finetune_operator.steps import Run


@dataclass(frozen=True)
class Breach:
    """A limit that is reached."""

    failure: Failure
    waited_seconds: int | None = None
    """How long the attempt had waited to start, where that is the limit."""
    counts: bool = False
    """Whether it is a failure of the attempt: after it comes the next try, if `spec.retryLimit` allows one."""


def breach(run: Run, stage: Stage) -> Breach | None:
    """The limit that the newest attempt of the stage has reached, if any."""
    spec, status, now = run.finetune.spec, run.status, run.now
    active = stages.active_seconds(status, now)
    if stage is Stage.TRAIN and active >= spec.active_deadline_seconds:
        message = f"train pods have run for {active} s; spec.activeDeadlineSeconds is {spec.active_deadline_seconds}"
        return Breach(a_failure(FailureClass.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED, message))
    if stage is Stage.TRAIN and (failure := budget.exceeded(run)) is not None:
        return Breach(failure)
    if stage is Stage.TRAIN and (failure := guards.given_up(run)) is not None:
        return Breach(failure, counts=True)
    waited = waited_seconds(status, stage, now)
    if waited < spec.pending_deadline_seconds:
        return None
    limit = f"spec.pendingDeadlineSeconds is {spec.pending_deadline_seconds}"
    message = f"{stage} has waited {waited} s for its pod to start; {limit}; {_words(status, stage)}"
    return Breach(a_failure(FailureClass.NOT_STARTED, Reason.PENDING_DEADLINE_EXCEEDED, message, stage), waited)


def still_holding(run: Run, stage: Stage) -> Failure | None:
    """The limit that stopped the newest attempt of the stage, as long as nobody has raised it."""
    spec, status, failure = run.finetune.spec, run.status, run.status.failure
    kind, entry = failure and failure.failure_class, stages.find(status, stage)
    if kind is FailureClass.BUDGET_EXCEEDED:
        return budget.exceeded(run)
    if kind is FailureClass.DEADLINE_EXCEEDED:
        return failure if status.active_seconds >= spec.active_deadline_seconds else None
    if kind is FailureClass.NOT_STARTED and entry and entry.waited_seconds is not None:
        return failure if entry.waited_seconds >= spec.pending_deadline_seconds else None
    return None


def time_left(run: Run) -> timedelta:
    """How long train pods may still run, or be silent; at least a second."""
    active = stages.active_seconds(run.status, run.now)
    left = timedelta(seconds=max(1, run.finetune.spec.active_deadline_seconds - active))
    heard = guards.silence(run)
    until_stalled = heard.left if heard and not heard.is_too_long else left
    return min(left, budget.time_left(run) or left, max(until_stalled, timedelta(seconds=1)))


def waited_seconds(status: FinetuneStatus, stage: Stage, now: datetime) -> int:
    """How long the newest attempt has waited for its pod to start; 0 for one not asked for yet, or started."""
    entry = stages.find(status, stage)
    if entry is None or entry.state is not StageState.PENDING or entry.waiting_since is None or status.retry_at:
        return 0
    return max(0, int((now - entry.waiting_since).total_seconds()))


def _words(status: FinetuneStatus, stage: Stage) -> str:
    """The scheduler's or kubelet's own words, where they have said any."""
    entry = stages.find(status, stage)
    return (entry and entry.message) or "nobody says why"
