"""A run that builds on another: it waits for that one, starts from its artifact, and fails with it."""

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from finetune_api.names import ConditionType, Phase
from finetune_api.resource import Finetune
from finetune_api.status import FinetuneStatus
from finetune_operator.cluster import Cluster, Key
from finetune_operator.conditions import condition_of
from finetune_operator.decide import Decision, decide
from finetune_operator.observed import Job, JobState, Observed
from finetune_operator.verdict import Attempt

from tests.builders import NOON, a_failed_pod, a_finetune, a_job, a_pod, a_result, some_settings
from tests.operator.deciding import PREPARE, PREPARED, TRAIN, reason_of

BUILDS_ON: dict[str, Any] = {"model": {"finetuneRef": {"name": "base"}}}


def decided(
    status: FinetuneStatus | None, base: Finetune | None, *jobs: Job, seconds: float = 0, **spec: Any
) -> Decision:
    """One decision about the run that builds on `base`, `seconds` after it was made."""
    finetune = a_finetune(status=status, **BUILDS_ON | spec)
    observed = Observed(jobs=jobs, bases=(base,) if base else ())
    return decide(finetune, observed, some_settings(), NOON + timedelta(seconds=seconds))


def a_base(status: FinetuneStatus | None = None, is_leaving: bool = False, **spec: Any) -> Finetune:
    """The Finetune that others build on."""
    base = a_finetune(status=status, **spec)
    changes = {"name": "base", "uid": "base-uid", "deletion_timestamp": NOON if is_leaving else None}
    return base.model_copy(update={"metadata": base.metadata.model_copy(update=changes)})


def ended(message: str | None = None, code: int = 0, **spec: Any) -> FinetuneStatus:
    """The status of a base whose train pod has ended so."""
    pod = a_failed_pod(exit_code=code) if code else a_pod(phase="Succeeded", message=message)
    last = a_job(TRAIN, 1, JobState.FAILED if code else JobState.COMPLETE, pod)
    status = FinetuneStatus()
    for _ in range(3):
        finetune = a_finetune(status=status, **spec)
        status = decide(finetune, Observed(jobs=(PREPARED, last)), some_settings(), NOON).status
    return status


SUCCEEDED = ended(a_result(TRAIN).to_message())
FAILED = ended(code=45)
CANCELLED = ended(code=143, cancel=True)
HELD = ended(code=43, retryLimit=0)


def test_the_bases_of_these_tests_are_what_they_are_called() -> None:
    phases = [status.phase for status in (SUCCEEDED, FAILED, CANCELLED, HELD)]
    assert phases == [Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED, Phase.SUSPENDED]


def test_it_waits_and_then_starts_from_the_artifact() -> None:
    waiting = decided(None, a_base())
    assert (waiting.start, reason_of(waiting.status)) == (None, "WaitingForBaseModel")
    assert waiting.check_again is not None
    ready = decided(waiting.status, a_base(SUCCEEDED), seconds=10**6)
    assert ready.start == Attempt(PREPARE, 1), "waiting for a base counts in no deadline"
    assert ready.status.resolved is not None
    assert ready.status.resolved.model_uri == "s3://out/a"


@pytest.mark.parametrize(
    ("base", "seconds", "reason"),
    [
        (a_base(FAILED), 0, "BaseModelFailed"),
        (a_base(CANCELLED), 0, "BaseModelFailed"),
        (a_base(HELD), 10**6, "WaitingForBaseModel"),
        (a_base(is_leaving=True), 0, "WaitingForBaseModel"),
        (None, 59, "WaitingForBaseModel"),
        (None, 60, "BaseModelNotFound"),
        (a_finetune(), 0, "BaseModelFailed"),
        (a_base(model={"finetuneRef": {"name": "another"}}), 0, "WaitingForBaseModel"),
        (a_base(SUCCEEDED, True), 60, "Preparing"),
        (a_base(SUCCEEDED, True, output={"uri": "s3://out/a", "deletionPolicy": "Delete"}), 60, "BaseModelNotFound"),
    ],
)
def test_what_becomes_of_the_base_decides(base: Finetune | None, seconds: int, reason: str) -> None:
    assert reason_of(decided(None, base, seconds=seconds).status) == reason


class Stored(Cluster):
    """The API server's Finetunes, by name."""

    def __init__(self, *finetunes: Finetune) -> None:
        self._finetunes = {finetune.metadata.name: finetune for finetune in finetunes}

    async def get_finetune(self, key: Key) -> Finetune | None:
        return self._finetunes.get(key.name)


def row_of_waiting(count: int, last: str | None) -> list[Finetune]:
    """Finetunes that wait each for the next one, the last one for `last`."""
    names = [*(f"run-{number}" for number in range(count)), last]
    return [a_waiting(name, base) for name, base in pairwise(names) if name]


def a_waiting(name: str, base: str | None) -> Finetune:
    spec: dict[str, Any] = {"model": {"finetuneRef": {"name": base}}} if base else {}
    finetune = a_finetune(**spec)
    changes = {"name": name, "uid": f"{name}-uid"}
    return finetune.model_copy(update={"metadata": finetune.metadata.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("count", "last", "seen", "message"),
    [
        (2, "run-0", 2, "waits for this one"),
        (5, "run-0", 5, "waits for this one"),
        (5, "run-2", 5, "waiting for Finetune run-1"),
        (3, "gone", 2, "waiting for Finetune run-1"),
        (17, None, 16, "waiting for Finetune run-1"),
        (18, None, 16, "more than 16 Finetunes"),
        (40, "run-0", 16, "more than 16 Finetunes"),
    ],
)
async def test_no_row_of_finetunes_waits_for_itself(count: int, last: str | None, seen: int, message: str) -> None:
    first, *others = row_of_waiting(count, last)
    bases = await Stored(first, *others).get_bases(first)
    assert len(bases) == seen
    ready = condition_of(decide(first, Observed(bases=bases), some_settings(), NOON).status, ConditionType.READY)
    assert ready is not None
    assert message in ready.message


def test_a_base_that_is_deleted_while_it_is_waited_for_ends_the_wait() -> None:
    waiting = decided(None, a_base(), seconds=3000).status
    gone = decided(waiting, None, seconds=3001).status
    assert (gone.phase, reason_of(gone)) == (Phase.FAILED, "BaseModelNotFound")


def test_a_run_that_has_begun_needs_its_base_no_more() -> None:
    begun = decided(None, a_base(SUCCEEDED)).status
    running = a_job(PREPARE, 1, JobState.RUNNING, a_pod(phase="Running", started_at=NOON))
    assert decided(begun, None, running, seconds=3600).status.phase is Phase.PREPARING


def test_of_a_chain_of_two_each_waits_for_the_one_before_and_all_fail_with_the_first() -> None:
    second = decided(None, a_base()).status
    third = decided(None, a_base(second)).status
    assert reason_of(third) == "WaitingForBaseModel"
    second = decided(second, a_base(FAILED)).status
    third = decided(third, a_base(second)).status
    assert (third.phase, reason_of(third)) == (Phase.FAILED, "BaseModelFailed")


def test_a_run_that_waits_for_its_base_can_be_cancelled_and_not_be_suspended_into_a_job() -> None:
    waiting = decided(None, a_base()).status
    assert decided(waiting, a_base(), cancel=True).status.phase is Phase.CANCELLED
    assert decided(waiting, a_base(), suspend=True).start is None
