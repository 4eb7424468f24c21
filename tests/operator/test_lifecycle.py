"""Suspending, cancelling, limits and the time after the end: what a person says, and what the run makes of it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.names import ConditionType, FailureClass, Phase, StageState
from finetune_api.status import FinetuneStatus
from finetune_operator.conditions import condition_of, is_true
from finetune_operator.decide import Decision, decide, refused
from finetune_operator.observed import Job, Observed
from finetune_operator.verdict import Attempt

from tests.builders import (
    NOON,
    a_failed_pod,
    a_failure_message,
    a_finetune,
    a_job,
    a_pod,
    a_report,
    a_result,
    some_settings,
)
from tests.operator.deciding import (
    A_POD,
    COMPLETE,
    FAILED,
    PREPARE,
    PREPARED,
    RUNNING,
    TRAIN,
    decided,
    told,
    train_entry,
    training,
)

DONE = a_job(TRAIN, 1, COMPLETE, a_pod(phase="Succeeded", message=a_result(TRAIN).to_message()))


def test_a_run_created_suspended_is_prepared_and_not_trained() -> None:
    status = decided(None, suspend=True).status
    prepared = decided(status, PREPARED, suspend=True)
    assert (prepared.start, prepared.status.phase) == (None, Phase.SUSPENDED)
    assert is_true(prepared.status, ConditionType.DATA_VALIDATED)
    assert decided(prepared.status, PREPARED).start == Attempt(TRAIN, 1)


def test_suspending_stops_the_job_and_resuming_makes_the_next_one() -> None:
    running = a_job(TRAIN, 1, RUNNING, A_POD)
    stopping = decided(training(), PREPARED, running, seconds=60, suspend=True)
    assert (stopping.stop, stopping.start) == ((running,), None)
    assert told(stopping.status, ConditionType.RECONCILING) == ("True", "Suspending")
    assert told(stopping.status, ConditionType.SUSPENDED)[0] == "False", "its pod still holds a GPU"

    leaving = decided(stopping.status, PREPARED, replace(running, deleted_at=NOON), seconds=61, suspend=True)
    assert leaving.stop == (), "a Job is told to go once"
    paused = decided(stopping.status, PREPARED, seconds=70, suspend=True)
    assert paused.status.phase is Phase.SUSPENDED
    assert told(paused.status, ConditionType.SUSPENDED) == ("True", "Suspended")
    assert told(paused.status, ConditionType.READY)[0] == "False"
    assert told(paused.status, ConditionType.STALLED)[0] == "False", "kstatus would call it failed"

    resumed = decided(paused.status, PREPARED, seconds=80)
    assert resumed.start == Attempt(TRAIN, 2)
    assert (resumed.status.retries, resumed.status.restarts) == (0, 0)


def test_a_run_resumed_while_its_pod_still_leaves_waits_for_it() -> None:
    running = a_job(TRAIN, 1, RUNNING, A_POD)
    stopping = decided(training(), PREPARED, running, suspend=True).status
    assert decided(stopping, PREPARED, replace(running, deleted_at=NOON)).start is None, "two pods would have trained"
    assert decided(stopping, PREPARED, orphans=(A_POD,)).start is None, "two pods would have trained"
    assert decided(stopping, PREPARED).start == Attempt(TRAIN, 2)


@pytest.mark.parametrize("wish", [{}, {"suspend": True}, {"cancel": True}])
def test_a_pod_whose_job_is_gone_is_told_to_leave_once(wish: dict[str, Any]) -> None:
    stray = replace(A_POD, is_of_job=True)
    lost = decided(training(), PREPARED, orphans=(stray, A_POD), **wish)
    assert (lost.start, lost.evict) == (None, (stray,)), "it would train on, and count in no limit"
    assert lost.check_again is not None
    leaving = replace(stray, leaves_by=NOON)
    assert decided(lost.status, PREPARED, orphans=(leaving,), **wish).evict == ()


@pytest.mark.parametrize(("wish", "phase"), [("suspend", Phase.SUSPENDED), ("cancel", Phase.CANCELLED)])
def test_a_deleted_job_that_a_finalizer_keeps_holds_nothing_up(wish: str, phase: Phase) -> None:
    wanted: dict[str, Any] = {wish: True}
    stopping = decided(training(), PREPARED, a_job(TRAIN, 1, RUNNING, A_POD), **wanted).status
    kept = replace(a_job(TRAIN, 1, RUNNING, replace(A_POD, phase="Failed")), deleted_at=NOON)
    assert decided(stopping, PREPARED, kept, seconds=59, **wanted).status.phase is not phase, "a pod may yet come"
    assert decided(stopping, PREPARED, kept, seconds=60, **wanted).status.phase is phase
    still = replace(kept, pods=(A_POD,))
    assert decided(stopping, PREPARED, still, seconds=60, **wanted).status.phase is not phase


def test_suspending_and_resuming_any_number_of_times_uses_up_nothing() -> None:
    status = training()
    for attempt in range(1, 30):
        status = decided(status, PREPARED, a_job(TRAIN, attempt, RUNNING, A_POD), suspend=True).status
        status = decided(status, PREPARED, suspend=True).status
        resumed = decided(status, PREPARED)
        assert resumed.start == Attempt(TRAIN, attempt + 1)
        status = resumed.status
    assert (status.retries, status.restarts) == (0, 0)


def test_a_run_that_was_published_before_it_could_be_suspended_or_cancelled_has_succeeded() -> None:
    wishes: list[dict[str, Any]] = [{"suspend": True}, {"cancel": True}]
    for wish in wishes:
        assert decided(training(), PREPARED, DONE, **wish).status.phase is Phase.SUCCEEDED
        stopping = decided(training(), PREPARED, a_job(TRAIN, 1, RUNNING, A_POD), **wish).status
        assert decided(stopping, PREPARED, DONE, **wish).status.phase is Phase.SUCCEEDED


def test_a_suspended_run_that_is_wrong_in_itself_fails() -> None:
    message = a_failure_message(TRAIN, "Diverged", "NotFinite")
    job = a_job(TRAIN, 1, FAILED, a_failed_pod(exit_code=45, message=message))
    assert decided(training(), PREPARED, job, suspend=True).status.phase is Phase.FAILED


@pytest.mark.parametrize("code", [43, 143])
def test_an_attempt_that_fails_while_suspended_goes_on_when_resumed(code: int) -> None:
    job = a_job(TRAIN, 1, FAILED, a_failed_pod(exit_code=code))
    leaving = decided(training(), PREPARED, job, suspend=True)
    assert leaving.start is None
    paused = decided(leaving.status, PREPARED, suspend=True)
    assert paused.status.phase is Phase.SUSPENDED
    assert decided(paused.status, PREPARED).start == Attempt(TRAIN, 2)


def test_time_suspended_does_not_count_where_a_pod_never_came_to_be() -> None:
    asked = decided(decided(None).status, PREPARED).status
    told_to_wait = refused(a_finetune(status=asked), Attempt(TRAIN, 1), "exceeded quota", for_good=False, now=NOON)
    paused = decided(told_to_wait, PREPARED, seconds=10, suspend=True)
    assert paused.status.phase is Phase.SUSPENDED
    resumed = decided(paused.status, PREPARED, seconds=9000)
    assert resumed.start == Attempt(TRAIN, 1), "spec.pendingDeadlineSeconds ran while it was suspended"
    assert train_entry(resumed.status).waiting_since == NOON + timedelta(seconds=9000)
    assert decided(paused.status, PREPARED, seconds=60, suspend=True).status == paused.status


def test_no_retry_waits_longer_than_any_wait_that_is_set() -> None:
    waiting = decided(training(), PREPARED, a_job(TRAIN, 1, FAILED, a_failed_pod(exit_code=43))).status
    assert decided(waiting, PREPARED).start is None
    assert decided(waiting, PREPARED, seconds=-86_400).start == Attempt(TRAIN, 2), "the clock had been a day ahead"


def test_a_retry_that_was_suspended_begins_like_any_other() -> None:
    failing = decided(training(), PREPARED, a_job(TRAIN, 1, FAILED, a_failed_pod(exit_code=43))).status
    assert failing.retry_at is not None
    paused = decided(failing, PREPARED, seconds=10, suspend=True).status
    resumed = decided(paused, PREPARED, seconds=60)
    assert (resumed.start, resumed.status.attempts) == (Attempt(TRAIN, 2), 2)
    assert told(resumed.status, ConditionType.RECONCILING) == ("True", "Training"), "nobody has refused anything"
    assert train_entry(resumed.status).waiting_since is not None, "it could be refused for ever"


def test_cancelling_stops_everything_and_is_final() -> None:
    running = a_job(TRAIN, 1, RUNNING, A_POD)
    stopping = decided(training(), PREPARED, running, cancel=True)
    assert stopping.stop == (running,)
    assert told(stopping.status, ConditionType.RECONCILING) == ("True", "Cancelling")
    cancelled = decided(stopping.status, PREPARED, cancel=True)
    assert (cancelled.start, cancelled.status.phase) == (None, Phase.CANCELLED)
    assert told(cancelled.status, ConditionType.SUCCEEDED) == ("False", "Cancelled")
    assert told(cancelled.status, ConditionType.STALLED) == ("True", "Cancelled")
    assert decided(cancelled.status, PREPARED, cancel=True).status == cancelled.status


def test_what_a_gang_had_published_before_it_lost_a_pod_is_not_cancelled() -> None:
    first = a_pod(phase="Succeeded", started_at=NOON, exit_code=0, message=a_result(TRAIN).to_message())
    gang = replace(a_job(TRAIN, 1, FAILED, first, a_failed_pod(name="other", index=1)), size=2)
    assert decided(training(), PREPARED, gang, cancel=True).status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize("wish", [{"suspend": True}, {"cancel": True}, {"activeDeadlineSeconds": 60}])
def test_a_run_that_is_published_and_whose_job_is_about_to_end_has_succeeded(wish: dict[str, Any]) -> None:
    pod = a_pod(phase="Running", started_at=NOON, message=a_result(TRAIN).to_message())
    for status in (training(), decided(training(), PREPARED, a_job(TRAIN, 1, RUNNING, A_POD), **wish).status):
        ending = decided(status, PREPARED, a_job(TRAIN, 1, RUNNING, pod), seconds=9, **wish)
        if "activeDeadlineSeconds" in wish:
            assert (ending.stop, ending.status.phase) == ((), Phase.TRAINING), "it ends by itself"
            continue
        assert (ending.stop, ending.status.phase) == ((a_job(TRAIN, 1, RUNNING, pod),), Phase.SUCCEEDED)
        assert ending.status.artifact == a_result(TRAIN).artifact


def test_a_run_that_was_cancelled_while_it_published_does_not_say_that_nothing_is() -> None:
    report = a_report(activity="publishing", progress={"step": 9, "totalSteps": 9})
    seen = Observed(jobs=(PREPARED, a_job(TRAIN, 1, RUNNING, A_POD)), report=report)
    publishing = decide(a_finetune(status=training()), seen, some_settings(), NOON).status
    for status, words in (
        (publishing, "if there is a manifest.json in s3://out/models/team-a/story/"),
        (training(), "nothing"),
    ):
        ended = condition_of(decided(status, PREPARED, cancel=True).status, ConditionType.SUCCEEDED)
        assert ended is not None
        assert words in ended.message


def test_of_a_job_that_is_gone_only_the_time_counts_in_which_something_was_heard_of_it() -> None:
    heard = a_report(progress={"step": 3}, received_at=NOON + timedelta(seconds=40))
    seen = Observed(jobs=(PREPARED, a_job(TRAIN, 1, RUNNING, A_POD)), report=heard)
    status = decide(a_finetune(status=training()), seen, some_settings(), NOON + timedelta(seconds=40)).status
    gone = decided(status, PREPARED, seconds=7200).status
    assert (gone.active_seconds, gone.restarts) == (40, 1)
    assert decided(training(), PREPARED, seconds=50).status.active_seconds == 50, "nobody has ever told"


def test_cancelling_stops_prepare_too() -> None:
    running = a_job(PREPARE, 1, RUNNING, A_POD)
    status = decided(decided(None).status, running).status
    assert decided(status, running, cancel=True).stop == (running,)


def test_a_run_cancelled_before_it_began_makes_no_job() -> None:
    decision = decided(None, cancel=True)
    assert (decision.start, decision.status.phase) == (None, Phase.CANCELLED)


def test_cancelling_a_finished_run_changes_nothing() -> None:
    status = decided(training(), PREPARED, DONE).status
    assert decided(status, cancel=True).status == status


def test_a_pod_that_never_starts_holds_the_run_with_the_schedulers_words() -> None:
    waiting = a_job(TRAIN, 1, RUNNING, a_pod(scheduled=False, waiting="Unschedulable: 0/3 nodes have a free GPU"))
    status = decided(decided(decided(None).status, PREPARED).status, PREPARED, waiting).status
    assert decided(status, PREPARED, waiting, seconds=3599).stop == ()
    held = decided(status, PREPARED, waiting, seconds=3600)
    assert held.stop == (waiting,)
    assert held.status.phase is Phase.SUSPENDED
    assert held.status.failure is not None
    assert held.status.failure.failure_class is FailureClass.NOT_STARTED
    for words in ("3600 s", "spec.pendingDeadlineSeconds is 3600", "0/3 nodes have a free GPU"):
        assert words in held.status.failure.message

    same = decided(held.status, PREPARED, seconds=9000)
    assert (same.start, same.status.phase) == (None, Phase.SUSPENDED), "nobody has raised the limit"
    resumed = decided(held.status, PREPARED, seconds=9000, pendingDeadlineSeconds=7200)
    assert (resumed.start, resumed.status.failure) == (Attempt(TRAIN, 2), None)


def test_time_that_a_run_is_trained_is_limited_over_all_attempts() -> None:
    limit: dict[str, Any] = {"activeDeadlineSeconds": 100}
    running = a_job(TRAIN, 1, RUNNING, A_POD)
    status = decided(training(), PREPARED, running, seconds=60, suspend=True, **limit).status
    assert status.active_seconds == 60
    status = decided(status, PREPARED, seconds=9000, suspend=True, **limit).status
    status = decided(status, PREPARED, seconds=9000, **limit).status
    second = a_job(TRAIN, 2, RUNNING, replace(A_POD, started_at=NOON + timedelta(seconds=9010)))
    went_on = decided(status, PREPARED, second, seconds=9049, **limit)
    assert (went_on.stop, went_on.check_again) == ((), timedelta(seconds=1)), "waiting and suspension do not count"
    held = decided(went_on.status, PREPARED, second, seconds=9050, **limit)
    assert held.stop == (second,)
    assert told(held.status, ConditionType.STALLED) == ("True", "DeadlineExceeded")
    assert held.status.failure is not None
    assert "spec.activeDeadlineSeconds is 100" in held.status.failure.message
    assert decided(held.status, PREPARED, seconds=9999, **limit).start is None
    assert decided(held.status, PREPARED, seconds=9999, activeDeadlineSeconds=200).start == Attempt(TRAIN, 3)


def test_the_time_of_an_attempt_is_counted_once() -> None:
    pod = a_failed_pod(exit_code=43, started_at=NOON - timedelta(seconds=30))
    job = a_job(TRAIN, 1, FAILED, pod)
    held = decided(training(), PREPARED, job, retryLimit=0).status
    assert held.active_seconds == 30
    assert decided(held, PREPARED, job, retryLimit=0, seconds=60).status.active_seconds == 30


def test_a_finished_run_is_removed_when_its_time_is_up_and_not_before() -> None:
    for last in (DONE, a_job(TRAIN, 1, FAILED, a_failed_pod(exit_code=45))):
        status = decided(training(), PREPARED, last).status
        early = decided(status, seconds=59, ttlSecondsAfterFinished=60)
        assert (early.remove, early.check_again) == (False, timedelta(seconds=1))
        assert decided(status, seconds=60, ttlSecondsAfterFinished=60).remove
        assert not decided(status, seconds=10**6).remove, "nobody asked for it"


def test_a_run_that_waits_for_a_person_is_never_removed() -> None:
    paused = decided(decided(None, suspend=True).status, PREPARED, suspend=True).status
    assert not decided(paused, PREPARED, seconds=10**6, suspend=True, ttlSecondsAfterFinished=1).remove


def test_a_finetune_of_another_controller_is_left_alone() -> None:
    decision = decided(None, managedBy="example.com/another")
    assert decision == Decision(FinetuneStatus())
    assert decided(None, managedBy="finetune-operator.io/finetune-operator").start == Attempt(PREPARE, 1)


QUEUED = replace(a_job(TRAIN, 1, RUNNING), is_suspended=True)


def test_a_run_in_a_queue_is_told_so_and_may_wait_for_ever() -> None:
    status = decided(decided(None).status, PREPARED).status
    queued = decided(status, PREPARED, QUEUED, seconds=10**6)
    assert (queued.status.phase, queued.stop) == (Phase.QUEUED, ()), "time in a queue counts in no deadline"
    assert told(queued.status, ConditionType.RECONCILING) == ("True", "WaitingForQueue")
    condition = condition_of(queued.status, ConditionType.READY)
    assert condition is not None
    assert "its queue, or whoever suspended it, has yet to admit it" in condition.message
    admitted = decided(queued.status, PREPARED, a_job(TRAIN, 1, RUNNING, a_pod()), seconds=10**6 + 60)
    assert (admitted.status.phase, admitted.stop) == (Phase.PENDING, ()), "waiting for a pod begins with admission"


def test_a_job_that_its_queue_suspends_and_resumes_is_simply_followed() -> None:
    status = training()
    taken = decided(status, PREPARED, QUEUED, seconds=60).status
    assert (taken.phase, taken.active_seconds) == (Phase.QUEUED, 60)
    assert decided(taken, PREPARED, QUEUED, seconds=9000).status.active_seconds == 60
    again = a_job(TRAIN, 1, RUNNING, replace(A_POD, started_at=NOON + timedelta(seconds=9000)))
    resumed = decided(taken, PREPARED, again, seconds=9010)
    assert (resumed.status.phase, resumed.start, resumed.stop) == (Phase.TRAINING, None, ())
    assert (resumed.status.restarts, resumed.status.retries) == (0, 0)


def test_pods_that_a_queue_took_back_and_gave_again_unseen_have_all_their_time_to_start() -> None:
    again = a_job(TRAIN, 1, RUNNING, a_pod(created_at=NOON + timedelta(seconds=9000)))
    decision = decided(training(), PREPARED, again, seconds=9000)
    assert (decision.status.phase, decision.stop) == (Phase.PENDING, ()), "it waits since now, not since noon"


def test_a_queue_says_why_a_run_waits_in_its_own_words() -> None:
    status = decided(decided(None).status, PREPARED).status
    job = replace(QUEUED, trouble="Pending: insufficient unused quota for nvidia.com/gpu")
    condition = condition_of(decided(status, PREPARED, job).status, ConditionType.READY)
    assert condition is not None
    assert "insufficient unused quota for nvidia.com/gpu" in condition.message


@pytest.mark.parametrize(
    ("job", "queue", "ranked"),
    [
        (QUEUED, {"name": "gpus", "priorityClassName": "high"}, True),
        (replace(QUEUED, queue_priority="low"), {"name": "gpus", "priorityClassName": "high"}, True),
        (replace(QUEUED, queue_priority="high"), {"name": "gpus", "priorityClassName": "high"}, False),
        (replace(QUEUED, queue_priority="low"), {"name": "gpus"}, False),
        (replace(QUEUED, is_suspended=False), {"name": "gpus", "priorityClassName": "high"}, False),
        (replace(QUEUED, deleted_at=NOON), {"name": "gpus", "priorityClassName": "high"}, False),
    ],
)
def test_a_new_priority_reaches_a_job_while_it_waits(job: Job, queue: dict[str, str], ranked: bool) -> None:
    status = decided(decided(None).status, PREPARED).status
    assert decided(status, PREPARED, job, queue=queue).relabel == ((job,) if ranked else ())


def test_a_stopped_stage_is_told_as_stopped() -> None:
    stopping = decided(training(), PREPARED, a_job(TRAIN, 1, RUNNING, A_POD), suspend=True).status
    assert train_entry(stopping).state is StageState.STOPPED
