"""A status is never larger than it may be, whatever is in it."""

import re
import types
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from annotated_types import MaxLen
from finetune_api.base import Model
from finetune_api.names import STATUS_MESSAGE_LENGTH, ConditionType, Stage
from finetune_api.status import Condition, FinetuneStatus, StageStatus
from finetune_operator.bounded import STATUS_BYTES, _size, bounded
from hypothesis import given
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

WIDE = "𝔘"
"""A letter of four bytes."""


def largest(kind: Any, limit: int = 24, letter: str = WIDE) -> Any:
    """The largest value of a type: lists and texts as long as they may be, of four-byte letters where any may be."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return of_field(FieldInfo.from_annotation(kind))
    if origin in (Union, types.UnionType):
        return largest(next(a for a in arguments if a is not type(None)), limit)
    if origin is list:
        return [largest(arguments[0])] * limit
    if origin is dict:
        return {f"{number:040}": largest(arguments[1]) for number in range(limit)}
    if issubclass(kind, Model):
        return kind.model_construct(**{name: of_field(field) for name, field in kind.model_fields.items()})
    if issubclass(kind, Enum):
        return max(kind, key=lambda member: len(str(member.value)))
    simple = {str: letter * limit, bool: False, int: 10**12, float: -1.23456e-300}
    return datetime(2026, 1, 1, tzinfo=UTC) if kind is datetime else simple[kind]


def of_field(field: FieldInfo) -> Any:
    longest = next((limit.max_length for limit in field.metadata if isinstance(limit, MaxLen)), 24)
    patterns = [limit.pattern for limit in field.metadata if getattr(limit, "pattern", None)]
    is_wide = all(re.search(pattern, WIDE) for pattern in patterns)
    return largest(field.annotation, longest, WIDE if is_wide else "x")


def the_largest_status() -> FinetuneStatus:
    status: FinetuneStatus = largest(FinetuneStatus)
    conditions = [largest(Condition).model_copy(update={"type": kind}) for kind in ConditionType]
    stages = [largest(StageStatus).model_copy(update={"name": stage}) for stage in Stage]
    return status.model_copy(update={"conditions": conditions, "stages": stages})


LARGEST = the_largest_status()
OPTIONAL = [name for name, field in FinetuneStatus.model_fields.items() if not field.is_required()]


def test_the_largest_status_that_there_can_be_is_cut_and_still_says_how_the_run_stands() -> None:
    assert _size(LARGEST) > 4 * STATUS_BYTES
    small = bounded(LARGEST)
    assert _size(small) <= STATUS_BYTES
    assert [c.type for c in small.conditions] == list(ConditionType)
    assert (small.phase, small.attempts, small.retry_at) == (LARGEST.phase, LARGEST.attempts, LARGEST.retry_at)
    assert small.failure is not None
    assert small.artifact == LARGEST.artifact


@given(st.sets(st.sampled_from(OPTIONAL)), st.integers(0, 60))
def test_a_status_of_any_parts_is_small_enough_and_cutting_it_again_changes_nothing(left: set[str], rows: int) -> None:
    fresh = FinetuneStatus()
    parts = {name: getattr(fresh, name) for name in left}
    status = LARGEST.model_copy(update={"history": LARGEST.history[:rows]} | parts)
    small = bounded(status)
    assert _size(small) <= STATUS_BYTES
    assert bounded(small) == small


def test_a_status_that_is_small_enough_is_left_alone() -> None:
    status = LARGEST.model_copy(
        update={name: getattr(FinetuneStatus(), name) for name in OPTIONAL if name != "failure"}
    )
    assert bounded(status) is status


@pytest.mark.parametrize("rows", [60, 30])
def test_of_an_honest_run_the_curve_alone_gets_shorter(rows: int) -> None:
    words = "m" * STATUS_MESSAGE_LENGTH
    status = FinetuneStatus(
        history=LARGEST.history[:rows],
        conditions=[c.model_copy(update={"message": words}) for c in LARGEST.conditions],
        stages=[s.model_copy(update={"message": words, "cause": None}) for s in LARGEST.stages],
    )
    small = bounded(status)
    assert small.model_copy(update={"history": []}) == status.model_copy(update={"history": []})
