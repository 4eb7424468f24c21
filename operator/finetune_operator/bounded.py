"""A status of at most 16 KiB, whatever trainers and clusters have said: what can be read elsewhere goes first. Pure.

The whole loss curve is in `training_log.jsonl`, the revisions are in the prepared index, a pod's words in its log.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from finetune_api.base import Model
from finetune_api.curve import thinned
from finetune_api.status import FinetuneStatus
from finetune_api.words import shortened

STATUS_BYTES = 16 * 1024
"""Largest status that is written."""

CURVES = (40, 20, 10)
"""How many points of the curve are kept, tried one after the other."""

TEXTS = (200, 100, 50, 20)
"""How many characters of each message are kept, once the curve is short."""

MESSAGES = ("message", "remedy", "warning")
"""The fields that hold text for people."""

DISPENSABLE: tuple[dict[str, Any], ...] = (
    {"history": []},
    {"plan": None, "estimate": None, "effective_hyperparameters": None},
    {"data": None, "evaluation": None, "checkpoint": None},
)
"""What is left out at last: only URIs and names of a trainer that means ill lead so far."""


def bounded(status: FinetuneStatus) -> FinetuneStatus:
    """The status, or the largest part of it that is small enough.

    Applied again it changes nothing: each step is taken only where all steps before it were not enough.
    """
    if _size(status) <= STATUS_BYTES:
        return status
    smaller = status
    for step in _steps():
        smaller = step(smaller)
        if _size(smaller) <= STATUS_BYTES:
            break
    return smaller


def _size(status: FinetuneStatus) -> int:
    return len(status.model_dump_json(by_alias=True, exclude_none=True).encode())


def _steps() -> Iterator[Callable[[FinetuneStatus], FinetuneStatus]]:
    """Each makes a status smaller, by what is missed least."""
    yield from (partial(_with_curve, rows=rows) for rows in CURVES)
    yield from (partial(_with_short_texts, length=length) for length in TEXTS)
    yield _without_revisions
    yield from (partial(_without, **parts) for parts in DISPENSABLE)


def _with_curve(status: FinetuneStatus, rows: int) -> FinetuneStatus:
    return _without(status, history=thinned(status.history, rows))


def _without(status: FinetuneStatus, **parts: Any) -> FinetuneStatus:
    return status.model_copy(update=parts)


def _without_revisions(status: FinetuneStatus) -> FinetuneStatus:
    resolved = status.resolved and status.resolved.model_copy(update={"dataset_revisions": {}})
    return _without(status, resolved=resolved)


def _with_short_texts(status: FinetuneStatus, length: int) -> FinetuneStatus:
    """The status with each message, in whatever part of it, cut to so many characters."""
    data = status.data and status.data.model_copy(
        update={"warnings": [shortened(text, length) for text in status.data.warnings]}
    )
    shorter: FinetuneStatus = _cut(status.model_copy(update={"data": data}), length)
    return shorter


def _cut(value: Any, length: int) -> Any:
    if isinstance(value, list):
        return [_cut(item, length) for item in value]
    if not isinstance(value, Model):
        return value
    changes = {}
    for name in type(value).model_fields:
        part = getattr(value, name)
        is_text = name in MESSAGES and isinstance(part, str)
        changes[name] = shortened(part, length) if is_text else _cut(part, length)
    return value.model_copy(update=changes)
