"""What is told as Events: each turn of a run's story, once, and the same turn again as one Event with a count. Pure."""

from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256
from typing import Any

from finetune_api import names
from finetune_api.names import ConditionType, Phase
from finetune_api.reasons import Reason
from finetune_api.resource import Finetune
from finetune_api.status import Condition, ConditionStatus, FinetuneStatus
from finetune_api.words import one_line, shortened

from finetune_operator.conditions import condition_of
from finetune_operator.verdict import Turn

EVENT_MESSAGE_LENGTH = 1024
"""Longest message of an Event. Source: Kubernetes API, Event v1 core."""

TOLD = (
    ConditionType.DATA_VALIDATED,
    ConditionType.SCHEDULED,
    ConditionType.PROGRESSING,
    ConditionType.GPU_BUSY,
    ConditionType.TRAINED,
    ConditionType.EVALUATED,
    ConditionType.ARTIFACT_PUBLISHED,
    ConditionType.SUCCEEDED,
    ConditionType.STALLED,
    ConditionType.SUSPENDED,
)
"""Conditions whose turns are Events."""

SILENT_WHEN_FALSE = (ConditionType.STALLED, ConditionType.SUSPENDED, ConditionType.SUCCEEDED)
"""That nothing is stalled or suspended is no news; and that a run has not succeeded, Stalled says in the same words."""

BEGUN = (Phase.QUEUED, Phase.PREPARING, Phase.TRAINING)
"""Phases whose beginning is an Event; that of the others some condition tells."""


def turns(before: FinetuneStatus, after: FinetuneStatus) -> Iterator[Turn]:
    """What happened between two statuses, each thing once."""
    ready = condition_of(after, ConditionType.READY)
    if ready and after.phase in BEGUN and after.phase is not before.phase:
        yield Turn(False, ready.reason, ready.message)
    for kind in TOLD:
        old, new = condition_of(before, kind), condition_of(after, kind)
        if new and _has_turned(old, new):
            bad = (new.status is ConditionStatus.TRUE) == (kind is ConditionType.STALLED)
            bad &= new.reason != Reason.NO_EVALUATION_ROWS  # As its user wanted it.
            yield Turn(bad, new.reason, new.message)
    yield from _further_attempts(before, after)


def _further_attempts(before: FinetuneStatus, after: FinetuneStatus) -> Iterator[Turn]:
    """Why another attempt starts, at once or later."""
    failure = after.failure
    if failure and after.retry_at and after.retry_at != before.retry_at:
        yield Turn(True, failure.reason, f"will try again at {after.retry_at:%H:%M:%S} UTC: {failure.message}")
    if failure and after.memory_rung > before.memory_rung:
        yield Turn(True, failure.reason, f"will try with less memory, rung {after.memory_rung}: {failure.message}")
    if after.restarts > before.restarts:
        yield Turn(False, Reason.RESTARTED, f"restart {after.restarts}: a pod was removed by the cluster")


def _has_turned(old: Condition | None, new: Condition) -> bool:
    """True when the condition has a new, definite status; that nothing is stalled is no news."""
    if new.status is ConditionStatus.UNKNOWN or (new.type in SILENT_WHEN_FALSE and new.status is ConditionStatus.FALSE):
        return False
    if new.type is ConditionType.SUSPENDED and new.reason != Reason.SUSPENDED:
        return False  # Stalled says it already, with the same words.
    return old is None or old.status is not new.status


def event_manifest(finetune: Finetune, turn: Turn, now: datetime) -> dict[str, Any]:
    """A core/v1 Event about the Finetune. Its name follows from what it says: the same again finds the first."""
    meta, stamp = finetune.metadata, f"{now:%Y-%m-%dT%H:%M:%SZ}"
    kind, message = "Warning" if turn.warning else "Normal", shortened(one_line(turn.message), EVENT_MESSAGE_LENGTH)
    digest = sha256("\n".join((meta.uid, kind, turn.reason, message)).encode()).hexdigest()
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": meta.namespace, "name": f"{meta.name}.{digest[:16]}"},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": meta.name,
            "namespace": meta.namespace,
            "uid": meta.uid,
        },
        "type": kind,
        "reason": turn.reason,
        "message": message,
        "source": {"component": names.FIELD_MANAGER},
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
