"""Conditions: setting one, reading one, and the phase that is derived from them. Pure."""

from collections.abc import Sequence
from datetime import datetime

from finetune_api.names import ConditionType, Phase, Stage, StageState
from finetune_api.reasons import Reason
from finetune_api.states import TRUE
from finetune_api.status import Condition, ConditionStatus, FinetuneStatus


def condition_of(status: FinetuneStatus, kind: ConditionType) -> Condition | None:
    """The condition of that type, if it was ever set."""
    return next((condition for condition in status.conditions if condition.type is kind), None)


def is_true(status: FinetuneStatus, kind: ConditionType) -> bool:
    """True when the condition is there and True."""
    condition = condition_of(status, kind)
    return condition is not None and condition.status is TRUE


def set_condition(
    conditions: Sequence[Condition],
    kind: ConditionType,
    value: ConditionStatus,
    reason: str,
    message: str,
    *,
    generation: int,
    now: datetime,
) -> list[Condition]:
    """The conditions with this one set; its transition time moves only when its status does."""
    old = next((condition for condition in conditions if condition.type is kind), None)
    since = old.last_transition_time if old and old.status is value else now
    new = Condition(
        type=kind,
        status=value,
        reason=reason,
        message=message,
        last_transition_time=since,
        observed_generation=generation,
    )
    return sorted(
        [*(c for c in conditions if c.type is not kind), new], key=lambda c: list(ConditionType).index(c.type)
    )


def phase_of(status: FinetuneStatus) -> Phase:
    """One word for a table column."""
    if is_true(status, ConditionType.SUCCEEDED):
        return Phase.SUCCEEDED
    if is_true(status, ConditionType.SUSPENDED):
        return Phase.SUSPENDED
    stalled = condition_of(status, ConditionType.STALLED)
    if stalled and stalled.status is TRUE:
        return Phase.CANCELLED if stalled.reason == Reason.CANCELLED else Phase.FAILED
    if is_true(status, ConditionType.TRAINED):
        return Phase.PUBLISHING
    running = {stage.name for stage in status.stages if stage.state is StageState.RUNNING}
    if Stage.TRAIN in running:
        return Phase.TRAINING
    if Stage.PREPARE in running:
        return Phase.PREPARING
    ready = condition_of(status, ConditionType.READY)
    return Phase.QUEUED if ready and ready.reason == Reason.WAITING_FOR_QUEUE else Phase.PENDING
