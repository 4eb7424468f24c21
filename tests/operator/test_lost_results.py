"""A Job that is complete and whose words are lost: what it came to is read from S3, and nothing is done twice."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.names import ConditionType, Phase, Stage
from finetune_api.run import RunResult
from finetune_api.status import FinetuneStatus
from finetune_operator.conditions import condition_of, is_true
from finetune_operator.decide import Decision, decide
from finetune_operator.errands import reading_job, reading_name
from finetune_operator.observed import Job, JobState, Observed, observed_children
from finetune_operator.stages import in_the_way
from finetune_operator.verdict import Attempt

from tests.builders import (
    NOON,
    UID,
    a_failed_pod,
    a_failure_message,
    a_finetune,
    a_job,
    a_pod,
    a_result,
    some_settings,
)
from tests.operator.deciding import COMPLETE, FAILED, PREPARE, PREPARED, RUNNING, TRAIN, reason_of

MUTE = a_job(TRAIN, 1, COMPLETE, a_pod(phase="Succeeded", message="not JSON", started_at=NOON))


def a_reading(state: JobState = RUNNING, stage: Stage = TRAIN, message: str | None = None) -> Job:
    pod = a_failed_pod(message=message) if state is FAILED else a_pod(phase="Succeeded", message=message)
    return replace(a_job(stage, 1, state, pod), name=reading_name(a_finetune(), Attempt(stage, 1)))


READ = a_reading(COMPLETE, message=a_result(TRAIN).to_message())
IN_VAIN = a_reading(FAILED, message=a_failure_message(TRAIN, "Infrastructure", "ResultLost", "there is no manifest"))


def decided(
    status: FinetuneStatus | None,
    *jobs: Job,
    readings: tuple[Job, ...] = (),
    later: timedelta = timedelta(0),
    **spec: Any,
) -> Decision:
    observed = Observed(jobs=jobs, readings=readings)
    return decide(a_finetune(status=status, **spec), observed, some_settings(), NOON + timedelta(seconds=60) + later)


def training() -> FinetuneStatus:
    """The status while the train pod runs, since noon."""
    status = decided(decided(None).status, PREPARED).status
    running = a_job(TRAIN, 1, RUNNING, a_pod(phase="Running", started_at=NOON))
    return decided(status, PREPARED, running).status


@pytest.mark.parametrize(
    "pods",
    [
        (a_pod(phase="Succeeded", message="not JSON"),),
        (a_pod(phase="Succeeded", message=RunResult(stage=TRAIN).to_message()),),
        (),
    ],
)
def test_a_job_without_a_readable_word_is_read_from_s3_before_anything_is_done_again(pods: Any) -> None:
    asked = decided(training(), PREPARED, a_job(TRAIN, 1, COMPLETE, *pods))
    assert (asked.read, asked.start, asked.stop) == (Attempt(TRAIN, 1), None, ())
    assert reason_of(asked.status) == "ReadingResult"
    waits = decided(asked.status, PREPARED, MUTE, readings=(a_reading(),))
    assert (waits.read, waits.start, waits.status) == (None, None, asked.status)


def test_a_run_whose_result_is_read_from_s3_has_succeeded() -> None:
    ended = decided(training(), PREPARED, MUTE, readings=(READ,)).status
    assert ended.phase is Phase.SUCCEEDED
    assert ended.artifact == a_result(TRAIN).artifact
    assert (ended.attempts, ended.retries, ended.failure) == (1, 0, None)


def test_what_prepare_found_is_read_from_s3_too() -> None:
    mute = a_job(PREPARE, 1, COMPLETE)
    started = decided(None).status
    assert decided(started, mute).read == Attempt(PREPARE, 1)
    read = a_reading(COMPLETE, PREPARE, a_result(PREPARE).to_message())
    ready = decided(started, mute, readings=(read,))
    assert ready.start == Attempt(TRAIN, 1)
    assert is_true(ready.status, ConditionType.DATA_VALIDATED)


@pytest.mark.parametrize("reading", [IN_VAIN, a_reading(FAILED), a_reading(COMPLETE, message="not JSON either")])
def test_what_s3_does_not_know_either_is_tried_again_and_never_called_a_success(reading: Job) -> None:
    lost = decided(training(), PREPARED, MUTE, readings=(reading,))
    assert lost.status.failure is not None
    assert lost.status.failure.reason == "ResultLost"
    assert (lost.start, lost.status.retries) == (None, 1)
    assert lost.status.retry_at == NOON + timedelta(seconds=70)


def test_a_reading_that_does_not_end_is_given_up() -> None:
    old = replace(a_reading(), created_at=NOON - timedelta(seconds=361 - 60))
    assert decided(training(), PREPARED, MUTE, readings=(old,)).status.retries == 1
    younger = replace(a_reading(), created_at=NOON - timedelta(seconds=360 - 60))
    assert reason_of(decided(training(), PREPARED, MUTE, readings=(younger,)).status) == "ReadingResult"


SIX_MINUTES = timedelta(seconds=362)


@pytest.mark.parametrize(
    ("wish", "phase"),
    [({}, Phase.PENDING), ({"suspend": True}, Phase.SUSPENDED), ({"cancel": True}, Phase.CANCELLED)],
)
def test_a_reading_that_the_api_server_refuses_is_given_up_and_lets_a_wish_through(
    wish: dict[str, Any], phase: Phase
) -> None:
    asked = decided(training(), PREPARED, MUTE, **wish).status
    told = in_the_way(asked, TRAIN, "exceeded quota: jobs")
    waits = decided(told, PREPARED, MUTE, **wish)
    assert (waits.read, waits.start) == (Attempt(TRAIN, 1), None)
    ready = condition_of(waits.status, ConditionType.READY)
    assert ready is not None
    assert (ready.reason, ready.message.endswith("; exceeded quota: jobs")) == ("ReadingResult", True)
    made = decided(waits.status, PREPARED, MUTE, readings=(a_reading(),), **wish).status
    assert made == asked, "it is still told of what stood in the way"
    given_up = decided(waits.status, PREPARED, MUTE, later=SIX_MINUTES, **wish)
    gone = decided(given_up.status, PREPARED, later=SIX_MINUTES, **wish)
    assert (given_up.read, gone.read, gone.status.phase) == (None, None, phase)
    failure = given_up.status.failure
    assert wish or (failure is not None and failure.message.endswith("reading it from S3: exceeded quota: jobs"))


def test_why_it_could_not_be_read_is_told() -> None:
    failure = decided(training(), PREPARED, MUTE, readings=(IN_VAIN,)).status.failure
    assert failure is not None
    assert "there is no manifest" in failure.message


def test_a_lost_result_is_looked_for_once_while_a_person_is_waited_for() -> None:
    held = decided(training(), PREPARED, MUTE, readings=(IN_VAIN,), retryLimit=0)
    assert held.status.phase is Phase.SUSPENDED
    later = decided(held.status, PREPARED, MUTE, retryLimit=0)
    assert (later.read, later.status) == (None, held.status)


@pytest.mark.parametrize("wish", [{"suspend": True}, {"cancel": True}])
def test_a_run_that_may_have_been_published_is_neither_suspended_nor_cancelled_before_that_is_known(
    wish: dict[str, Any],
) -> None:
    running = a_job(TRAIN, 1, RUNNING, a_pod(phase="Running", started_at=NOON))
    for status in (training(), decided(training(), PREPARED, running, **wish).status):
        asked = decided(status, PREPARED, MUTE, **wish)
        assert (asked.read, asked.stop) == (Attempt(TRAIN, 1), ())
        assert decided(asked.status, PREPARED, MUTE, readings=(READ,), **wish).status.phase is Phase.SUCCEEDED
        stopped = decided(asked.status, PREPARED, MUTE, readings=(IN_VAIN,), **wish).status
        assert decided(stopped, PREPARED, readings=(IN_VAIN,), **wish).status.phase in (
            Phase.SUSPENDED,
            Phase.CANCELLED,
        )


def test_a_limit_waits_for_what_a_quicker_job_came_to() -> None:
    running = a_job(TRAIN, 1, RUNNING, a_pod(phase="Running", started_at=NOON))
    held = decided(training(), PREPARED, running, activeDeadlineSeconds=60)
    assert held.stop == (running,)
    assert decided(held.status, PREPARED, MUTE, activeDeadlineSeconds=60).read == Attempt(TRAIN, 1)


@pytest.mark.parametrize("stage", list(Stage))
def test_a_reading_is_known_by_its_name_and_is_no_attempt(stage: Stage) -> None:
    finetune = a_finetune()
    manifest = reading_job(finetune, Attempt(stage, 12), some_settings())
    job = manifest | {"metadata": manifest["metadata"] | {"uid": "reading-uid"}}
    owners = [{"uid": "reading-uid", "controller": True}]
    pod = {"metadata": {"name": "pod", "uid": "pod-uid", "ownerReferences": owners}, "status": {"phase": "Running"}}
    seen = observed_children([job], [pod], UID)
    assert (seen.jobs, seen.orphans) == ((), ())
    assert [(found.stage, found.attempt, len(found.pods)) for found in seen.readings] == [(stage, 12, 1)]
    longest = finetune.metadata.model_copy(update={"name": "x" * 40})
    assert len(reading_name(finetune.model_copy(update={"metadata": longest}), Attempt(stage, 99999))) <= 63
