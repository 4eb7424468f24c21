"""Whatever numbers, times and texts a pod tells, the status that comes of it is one that the API server takes."""

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.crd import status_schema
from finetune_api.fields import LARGEST_COUNT
from finetune_api.names import Phase, Stage
from finetune_api.run import ProgressReport, RunResult
from finetune_api.status import FinetuneStatus
from finetune_operator.decide import decide
from finetune_operator.observed import JobState, Observed, Report
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import ValidationError

from tests.builders import NOON, UID, a_failed_pod, a_finetune, a_job, a_pod, some_settings
from tests.operator.test_bounded import WIDE, largest

NONSENSE: list[Any] = [
    -1, 0, 2**31, LARGEST_COUNT, 2**53, 2**63, 10**30, -1.5, 1e-320, 1e15, 1e308, True, None, "", "-1", "NaN",
    "2026-01-01T00:00:00", "2026-01-01T00:00:00.5+23:59", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
    1_700_000_000, "x\ny\u0000\u202e", "𝔘" * 64, "s3://out/a", [], {},
]  # fmt: skip
"""What is put in the place of each value that takes it."""

SETTINGS = some_settings(
    gpus=[{"name": "any", "pricePerMillionTokens": "1000000000"}],
    prices={"currency": "EUR", "overheadPercent": "1000", "storagePerGibMonth": "1000000000"},
)

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
"""Times that the API server takes. Source: go-openapi/strfmt."""

FORMATS = FormatChecker(formats=())
FORMATS.checks("date-time")(lambda text: RFC_3339.fullmatch(str(text)) is not None)
TAKEN = Draft202012Validator(status_schema(), format_checker=FORMATS)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value that is no object or list."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path
        return
    for key, child in items:
        yield from places(child, (*path, key))


def with_value(whole: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at the end of the path."""
    copy = json.loads(json.dumps(whole))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return copy


def spoilt(kind: type[RunResult] | type[ProgressReport], whole: Any, nonsense: Any) -> Any:
    """The message with the nonsense wherever it is understood all the same."""
    for path in places(whole):
        if path[0] in ("stage", "attempt", "identity"):
            continue
        changed = with_value(whole, path, nonsense)
        try:
            kind.model_validate_json(json.dumps(changed))
        except ValidationError:
            continue
        whole = changed
    return whole


def a_message(kind: type[RunResult] | type[ProgressReport], stage: Stage, **parts: Any) -> Any:
    """One with every field, as a pod may send it."""
    whole = modest(largest(kind).to_json()) | {"stage": stage.value} | parts
    return kind.model_validate(whole).to_json()


def modest(value: Any) -> Any:
    """The value with short lists and texts, and small numbers."""
    if isinstance(value, dict):
        return {key: modest(child) for key, child in list(value.items())[:40]}
    if isinstance(value, list):
        return [modest(child) for child in value[:2]]
    if isinstance(value, bool):
        return value
    return 7 if isinstance(value, int) else 0.5 if isinstance(value, float) else value.replace(WIDE, "x")


@pytest.mark.parametrize("nonsense", NONSENSE, ids=lambda value: ascii(value)[:24])
def test_a_status_made_of_nonsense_can_be_written(nonsense: Any) -> None:
    said = {stage: spoilt(RunResult, a_message(RunResult, stage), nonsense) for stage in Stage}
    good = {stage: json.dumps({**result, "failure": None}) for stage, result in said.items()}
    identity = {"namespace": "team-a", "name": "story", "uid": UID}
    told = a_message(ProgressReport, Stage.TRAIN, identity=identity, attempt=1, result=None)
    report = Report(ProgressReport.model_validate(spoilt(ProgressReport, told, nonsense)), NOON)
    prepared = a_job(Stage.PREPARE, 1, JobState.COMPLETE, a_pod(phase="Succeeded", message=good[Stage.PREPARE]))
    running = a_job(Stage.TRAIN, 1, JobState.RUNNING, a_pod(phase="Running", started_at=NOON))
    published = a_job(Stage.TRAIN, 1, JobState.COMPLETE, a_pod(phase="Succeeded", message=good[Stage.TRAIN]))
    failed = a_job(Stage.TRAIN, 1, JobState.FAILED, a_failed_pod(message=json.dumps(said[Stage.TRAIN])))
    for ended in (published, failed):
        status, now = FinetuneStatus(), NOON
        for jobs in ((), (prepared,), (prepared, running), (prepared, ended)):
            now += timedelta(minutes=10)
            status = decide(a_finetune(status=status), Observed(jobs, report=report), SETTINGS, now).status
            assert [error.message for error in TAKEN.iter_errors(status.to_json())] == []
            assert FinetuneStatus.model_validate(status.to_json()) == status, "it reads back as another"
            found = list(leaves(status.to_json()))
            assert all(value <= LARGEST_COUNT for value in found if isinstance(value, int))
            assert all(value.isprintable() for value in found if isinstance(value, str)), "a terminal would obey"
        assert (status.phase is Phase.SUCCEEDED) == (ended is published), "it was not understood at all"


def leaves(value: Any) -> Iterator[Any]:
    """Each value that is no object or list."""
    for path in places(value):
        leaf = value
        for key in path:
            leaf = leaf[key]
        yield leaf
