"""The times that a user allows: how long a pod may take to start, and how long pods may train. Pure.

A run that reaches one is held, not failed: whoever raises the limit lets it go on.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.names import FailureClass, Stage, StageState
from finetune_api.resource import FinetuneSpec
from finetune_api.status import Failure, FinetuneStatus

from finetune_operator import stages
from finetune_operator.attempts import a_failure


@dataclass(frozen=True)
class Breach:
    """A limit that is reached."""

    failure: Failure
    waited_seconds: int | None = None
    """How long the attempt had waited to start, where that is the limit."""


def breach(spec: FinetuneSpec, status: FinetuneStatus, stage: Stage, now: datetime) -> Breach | None:
    """The limit that the newest attempt of the stage has reached, if any."""
    active = stages.active_seconds(status, now)
    if stage is Stage.TRAIN and active >= spec.active_deadline_seconds:
        message = f"train pods have run for {active} s; spec.activeDeadlineSeconds is {spec.active_deadline_seconds}"
        return Breach(a_failure(FailureClass.DEADLINE_EXCEEDED, "DeadlineExceeded", message))
    waited = waited_seconds(status, stage, now)
    if waited < spec.pending_deadline_seconds:
        return None
    limit = f"spec.pendingDeadlineSeconds is {spec.pending_deadline_seconds}"
    message = f"{stage} has waited {waited} s for its pod to start; {limit}; {_words(status, stage)}"
    return Breach(a_failure(FailureClass.NOT_STARTED, "PendingDeadlineExceeded", message, stage), waited)


def still_breached(spec: FinetuneSpec, status: FinetuneStatus, stage: Stage) -> bool:
    """Whether the limit that stopped the newest attempt of the stage is as low as it was."""
    kind, entry = status.failure and status.failure.failure_class, stages.find(status, stage)
    if kind is FailureClass.DEADLINE_EXCEEDED:
        return status.active_seconds >= spec.active_deadline_seconds
    if kind is FailureClass.NOT_STARTED and entry and entry.waited_seconds is not None:
        return entry.waited_seconds >= spec.pending_deadline_seconds
    return False


def active_time_left(spec: FinetuneSpec, status: FinetuneStatus, now: datetime) -> timedelta:
    """How long train pods may still run; at least a second."""
    return timedelta(seconds=max(1, spec.active_deadline_seconds - stages.active_seconds(status, now)))


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
