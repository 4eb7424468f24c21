"""The product in one function: what a user would have lost is in each test's name."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.names import ConditionType, FailureClass, Phase, Stage
from finetune_api.run import RunResult
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
from tests.operator.deciding import COMPLETE, FAILED, PREPARE, RUNNING, TRAIN, decided, told


def done(stage: Stage, attempt: int = 1, **parts: Any) -> Job:
    """A Job that is complete, with its result."""
    message = a_result(stage, **parts).to_message()
    return a_job(stage, attempt, COMPLETE, a_pod(phase="Succeeded", exit_code=0, message=message))


def failed(stage: Stage, attempt: int = 1, **pod: Any) -> Job:
    """A Job that has failed, with its pod."""
    return a_job(stage, attempt, FAILED, a_failed_pod(**pod))


def after_prepare() -> FinetuneStatus:
    """The status once the data is ready and the train Job is asked for."""
    return decided(decided(None).status, done(PREPARE)).status


def test_a_fresh_finetune_gets_its_data_checked_first() -> None:
    decision = decided(None)
    assert decision.start == Attempt(PREPARE, 1)
    assert decision.status.phase is Phase.PENDING
    assert told(decision.status, ConditionType.RECONCILING) == ("True", "Preparing")
    assert told(decision.status, ConditionType.READY) == ("False", "Preparing")


def test_no_gpu_is_asked_for_before_the_data_has_passed() -> None:
    status = decided(None).status
    running = decided(status, a_job(PREPARE, 1, RUNNING, a_pod(phase="Running", started_at=NOON)))
    assert running.start is None
    assert running.status.phase is Phase.PREPARING
    assert decided(running.status, done(PREPARE)).start == Attempt(TRAIN, 1)


def test_what_prepare_found_is_in_the_status_and_kept_for_every_attempt() -> None:
    status = after_prepare()
    assert status.data is not None
    assert status.data.rows.train == 8
    assert status.resolved is not None
    assert (status.resolved.model_uri, status.resolved.model_revision) == ("s3://models/base", "abc")
    assert status.attempts == 1


def test_a_published_artifact_is_what_makes_it_succeed() -> None:
    decision = decided(after_prepare(), done(PREPARE), done(TRAIN))
    assert decision.status.phase is Phase.SUCCEEDED
    assert told(decision.status, ConditionType.READY) == ("True", "Succeeded")
    assert decision.status.artifact is not None
    for kind in (ConditionType.TRAINED, ConditionType.ARTIFACT_PUBLISHED, ConditionType.SUCCEEDED):
        assert is_true(decision.status, kind)
    assert told(decision.status, ConditionType.EVALUATED) == ("False", "NoEvaluationRows")


def test_a_result_whose_pod_is_gone_is_taken_from_the_last_report() -> None:
    result = a_result(TRAIN).to_json()
    report = a_report(TRAIN, activity="publishing", result=result)
    decision = decided(after_prepare(), a_job(TRAIN, 1, COMPLETE), report=report)
    assert decision.status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize(
    ("pod", "kind"),
    [
        ({"message": a_failure_message(TRAIN, "InvalidData", "ColumnMissing")}, FailureClass.INVALID_DATA),
        ({"message": a_failure_message(TRAIN, "AccessDenied", "KeyMissing")}, FailureClass.ACCESS_DENIED),
        ({"exit_code": 42}, FailureClass.INVALID_CONFIG),
        ({"exit_code": 45}, FailureClass.DIVERGED),
        ({"exit_code": 46}, FailureClass.GATE_FAILED),
        ({"exit_code": None, "reason": "Evicted"}, FailureClass.DISK_FULL),
    ],
)
def test_what_is_wrong_with_the_run_itself_ends_it_with_a_remedy(pod: dict[str, Any], kind: FailureClass) -> None:
    decision = decided(after_prepare(), failed(TRAIN, **pod))
    assert decision.status.failure is not None
    assert decision.status.failure.failure_class is kind
    assert decision.status.failure.remedy
    assert decision.status.phase is Phase.FAILED
    assert told(decision.status, ConditionType.SUCCEEDED)[0] == "False"
    assert told(decision.status, ConditionType.STALLED)[0] == "True"
    assert decision.start is None


def test_a_model_that_does_not_pass_the_gate_fails_and_shows_what_was_measured() -> None:
    evaluation = {"rows": 4, "perplexity": {"base": 31.2, "tuned": 30.9}}
    failure = {"class": "GateFailed", "reason": "GateFailed", "message": "wants perplexity of at most 5.0"}
    missed = a_result(TRAIN, artifact=None, evaluation=evaluation, progress={"step": 60}, failure=failure)
    status = decided(after_prepare(), done(PREPARE), failed(TRAIN, exit_code=46, message=missed.to_message())).status
    assert status.phase is Phase.FAILED
    assert status.evaluation == missed.evaluation
    assert status.artifact is None
    assert status.failure is not None
    assert status.failure.message == "wants perplexity of at most 5.0"
    assert "evaluation.gate" in status.failure.remedy
    assert told(status, ConditionType.TRAINED) == ("True", "StepsDone")
    assert told(status, ConditionType.EVALUATED) == ("True", "Compared")
    assert told(status, ConditionType.ARTIFACT_PUBLISHED) == ("False", "GateFailed")
    assert told(status, ConditionType.SUCCEEDED) == ("False", "GateFailed")
    assert decided(status).status == status


OUT_OF_GPU_MEMORY: dict[str, Any] = {"exit_code": 44}
OUT_OF_HOST_MEMORY: dict[str, Any] = {"exit_code": 137, "exit_reason": "OOMKilled"}


@pytest.mark.parametrize(
    ("rung", "pod", "following"),
    [
        (0, OUT_OF_GPU_MEMORY, 1),
        (1, OUT_OF_GPU_MEMORY, 2),
        (2, OUT_OF_GPU_MEMORY, 3),
        (3, OUT_OF_GPU_MEMORY, None),
        (0, OUT_OF_HOST_MEMORY, 1),
        (1, OUT_OF_HOST_MEMORY, None),
    ],
)
def test_an_attempt_without_memory_is_followed_by_a_smaller_one_until_the_ladder_ends(
    rung: int, pod: dict[str, Any], following: int | None
) -> None:
    status = after_prepare().model_copy(update={"memory_rung": rung})
    decision = decided(status, failed(TRAIN, **pod))
    assert decision.status.failure is not None
    assert decision.status.failure.remedy
    assert decision.status.retries == 0
    if following is None:
        assert (decision.start, decision.status.phase) == (None, Phase.FAILED)
        assert decision.status.memory_rung == rung
    else:
        assert (decision.start, decision.status.memory_rung) == (Attempt(TRAIN, 2), following)
        assert decided(decision.status, failed(TRAIN, **pod)) == decision


def test_prepare_has_no_smaller_plan_to_try() -> None:
    decision = decided(decided(None).status, failed(PREPARE, **OUT_OF_HOST_MEMORY))
    assert (decision.status.phase, decision.status.memory_rung) == (Phase.FAILED, 0)


def test_the_rung_outlives_a_preemption() -> None:
    smaller = decided(after_prepare(), failed(TRAIN, **OUT_OF_GPU_MEMORY)).status
    assert decided(smaller, failed(TRAIN, 2, exit_code=143)).status.memory_rung == 1


@pytest.mark.parametrize("pod", [{"exit_code": 43}, {"exit_code": 137}, {"exit_code": 1}])
def test_an_infrastructure_failure_is_tried_again_after_a_growing_wait(pod: dict[str, Any]) -> None:
    first = decided(after_prepare(), failed(TRAIN, **pod))
    assert (first.start, first.status.retries, first.check_again) == (None, 1, timedelta(seconds=10))
    early = decided(first.status, failed(TRAIN, **pod), seconds=9)
    assert early.start is None
    second = decided(first.status, failed(TRAIN, **pod), seconds=10)
    assert second.start == Attempt(TRAIN, 2)
    assert second.status.attempts == 2
    again = decided(second.status, failed(TRAIN, 1, **pod), failed(TRAIN, 2, **pod), seconds=60)
    assert again.check_again == timedelta(seconds=20)


def test_retries_used_up_hold_the_run_and_raising_the_limit_lets_it_go_on() -> None:
    held = decided(after_prepare(), failed(TRAIN, exit_code=43), retryLimit=0)
    assert held.status.phase is Phase.SUSPENDED
    assert told(held.status, ConditionType.STALLED) == ("True", "RetriesExhausted")
    assert told(held.status, ConditionType.SUSPENDED)[0] == "True"
    condition = condition_of(held.status, ConditionType.STALLED)
    assert condition is not None
    assert "spec.retryLimit 0" in condition.message
    raised = decided(held.status, failed(TRAIN, exit_code=43), retryLimit=1)
    assert raised.check_again == timedelta(seconds=10)
    assert told(raised.status, ConditionType.STALLED)[0] == "False"


@pytest.mark.parametrize("pod", [{"disruption": "PreemptionByScheduler", "exit_code": 137}, {"exit_code": 143}])
def test_a_preemption_starts_again_at_once_and_counts_against_nothing(pod: dict[str, Any]) -> None:
    decision = decided(after_prepare(), failed(TRAIN, **pod))
    assert decision.start == Attempt(TRAIN, 2)
    assert (decision.status.retries, decision.status.restarts) == (0, 1)
    assert decision.status.failure is None


def test_a_run_that_is_preempted_for_ever_is_held_in_the_end() -> None:
    status, number = after_prepare(), 1
    for _ in range(100):
        decision = decided(status, failed(TRAIN, number, exit_code=143), seconds=3600 * number)
        status = decision.status
        if is_true(status, ConditionType.SUSPENDED):
            break
        number += 1
        if decision.start is None:
            status = decided(status, seconds=3600 * number).status
    assert told(status, ConditionType.STALLED) == ("True", "RetriesExhausted")
    assert (status.restarts, number) == (4 * 4 + 3, 4 * 5)


def preempted(status: FinetuneStatus, number: int, *steps: int) -> FinetuneStatus:
    """The status after one preemption for each of `steps`, where the newest checkpoint is told to be by then."""
    for attempt, step in enumerate(steps, number):
        saved = {"step": step, "uri": "s3://out/c", "savedAt": NOON} if step else None
        failure = {"class": "Preempted", "reason": "Terminated", "message": "the pod was told to stop"}
        said = RunResult.model_validate({"stage": "train", "failure": failure, "checkpoint": saved})
        status = decided(status, failed(TRAIN, attempt, exit_code=143, message=said.to_message())).status
    return status


@pytest.mark.parametrize(
    ("steps", "counted"),
    [
        ((0, 0, 0, 0), (0, 4, 4)),
        ((0, 0, 0, 0, 0), (1, 5, 0)),
        ((10, 10, 10, 10), (0, 4, 4)),
        ((10, 10, 10, 10, 10), (1, 5, 0)),
        ((10, 20, 30, 40, 50, 60, 70, 80), (0, 8, 1)),
        ((0, 0, 0, 0, 5), (0, 5, 1)),
    ],
)
def test_only_preemptions_in_a_row_without_a_new_checkpoint_count(
    steps: tuple[int, ...], counted: tuple[int, int, int]
) -> None:
    status = preempted(after_prepare(), 1, *steps)
    assert (status.retries, status.restarts, status.restarts_in_a_row) == counted


def test_a_checkpoint_that_is_reported_ends_the_row_too() -> None:
    status = preempted(after_prepare(), 1, 0, 0, 0, 0)
    saved = {"step": 7, "uri": "s3://out/c", "savedAt": NOON}
    running = a_job(TRAIN, 5, RUNNING, a_pod(phase="Running", started_at=NOON))
    status = decided(status, running, report=a_report(TRAIN, 5, checkpoint=saved)).status
    assert (status.restarts, status.restarts_in_a_row) == (4, 0)


def test_a_prepare_that_is_done_and_a_retry_end_the_row() -> None:
    status = decided(None).status
    for attempt in range(1, 5):
        status = decided(status, failed(PREPARE, attempt, exit_code=143)).status
    assert status.restarts_in_a_row == 4
    assert decided(status, done(PREPARE, 5)).status.restarts_in_a_row == 0
    assert decided(status, failed(PREPARE, 5, exit_code=43)).status.restarts_in_a_row == 0


def test_a_run_that_was_held_for_its_preemptions_goes_on_when_its_limit_is_raised() -> None:
    job = failed(TRAIN, 5, exit_code=143)
    status = preempted(after_prepare(), 1, 0, 0, 0, 0)
    held = decided(status, job, retryLimit=0).status
    assert is_true(held, ConditionType.SUSPENDED)
    raised = decided(held, job, retryLimit=1).status
    assert (raised.retries, raised.restarts_in_a_row) == (1, 0)


def test_no_attempt_starts_while_a_pod_of_the_last_one_still_runs() -> None:
    job = a_job(TRAIN, 1, FAILED, a_failed_pod(exit_code=143), a_pod(name="sibling", phase="Running", started_at=NOON))
    assert decided(after_prepare(), job).start is None


def test_a_job_deleted_by_hand_is_followed_by_the_next_once_its_pods_are_gone() -> None:
    pod = a_pod(phase="Running", started_at=NOON)
    status = decided(after_prepare(), a_job(TRAIN, 1, RUNNING, pod)).status
    leaving = decide(a_finetune(status=status), Observed(orphans=(pod,)), some_settings(), NOON)
    assert leaving.start is None, "two pods would have trained at once"
    assert decided(status).start == Attempt(TRAIN, 2)


def test_a_held_run_stays_held_when_its_old_jobs_are_cleaned_up() -> None:
    held = decided(after_prepare(), failed(TRAIN, exit_code=43), retryLimit=0).status
    cleaned = decided(held, retryLimit=0)
    assert (cleaned.start, cleaned.status.phase) == (None, Phase.SUSPENDED)
    assert decided(held, retryLimit=1).status.retry_at is not None


def test_a_preempted_pod_that_is_gone_before_its_job_fails_counts_against_nothing() -> None:
    going = a_job(TRAIN, 1, RUNNING, a_pod(phase="Running", started_at=NOON, disruption="EvictionByEvictionAPI"))
    status = decided(after_prepare(), going).status
    decision = decided(status, a_job(TRAIN, 1, FAILED))
    assert decision.start == Attempt(TRAIN, 2)
    assert (decision.status.retries, decision.status.restarts) == (0, 1)


def test_a_refusal_of_the_api_server_is_told_once_and_written_once() -> None:
    status = after_prepare()
    told_once = refused(a_finetune(status=status), Attempt(TRAIN, 1), "exceeded quota", for_good=False, now=NOON)
    again = decided(told_once, seconds=60)
    assert again.start == Attempt(TRAIN, 1)
    assert again.status == told_once, "each pass would write the status, and each write would start a pass"
    condition = condition_of(again.status, ConditionType.READY)
    assert condition is not None
    assert (condition.reason, "exceeded quota" in condition.message) == ("Refused", True)


def test_a_refusal_for_good_of_any_length_fails_the_run() -> None:
    status = refused(a_finetune(status=after_prepare()), Attempt(TRAIN, 1), "x" * 9000, for_good=True, now=NOON)
    assert status.phase is Phase.FAILED


def test_a_pod_that_never_starts_is_told_in_the_words_of_its_events() -> None:
    job = replace(a_job(TRAIN, 1, RUNNING), trouble="FailedCreate: exceeded quota: gpus")
    decision = decided(after_prepare(), job)
    assert decision.check_again == timedelta(seconds=10)
    condition = condition_of(decision.status, ConditionType.READY)
    assert condition is not None
    assert "exceeded quota: gpus" in condition.message


def test_a_pod_that_no_scheduler_has_looked_at_is_not_called_scheduled() -> None:
    decision = decided(after_prepare(), a_job(TRAIN, 1, RUNNING, a_pod()))
    assert condition_of(decision.status, ConditionType.SCHEDULED) is None


def test_a_pod_that_its_node_turns_away_is_told_in_the_kubelets_words() -> None:
    words = "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu"
    pod: dict[str, Any] = {"exit_code": None, "started_at": None, "reason": "UnexpectedAdmissionError", "detail": words}
    failure = decided(after_prepare(), failed(TRAIN, **pod)).status.failure
    assert failure is not None
    assert (failure.failure_class, failure.reason) == (FailureClass.INFRASTRUCTURE, "UnexpectedAdmissionError")
    assert words in failure.message


def test_memory_for_prepare_is_raised_where_prepare_gets_it() -> None:
    status = decided(None).status
    failure = decided(status, failed(PREPARE, exit_code=137, exit_reason="OOMKilled")).status.failure
    assert failure is not None
    assert "settings.prepare.memory" in failure.remedy


def test_the_image_in_the_status_is_that_of_the_attempt() -> None:
    status = after_prepare()
    assert status.resolved is not None
    old = status.model_copy(update={"resolved": status.resolved.model_copy(update={"trainer_image": "old:1"})})
    again = decided(old, failed(TRAIN, exit_code=143)).status
    assert again.resolved is not None
    assert again.resolved.trainer_image == some_settings().trainer_image


def test_the_largest_status_stays_below_16_kib() -> None:
    long = "x" * 20000
    spec: dict[str, Any] = {"retryLimit": 1}
    data = {"rows": {"train": 10**9}, "warnings": ["w" * 200] * 8, "reportUri": "s3://" + "u" * 700}
    history = [{"step": 10**9, "epoch": 999.1234, "trainingLoss": 1.23456e-9, "validationLoss": 1.23456e-9}] * 60
    status = decided(decided(None).status, done(PREPARE, data=data)).status
    job = a_job(TRAIN, 1, RUNNING, a_pod(phase="Running", started_at=NOON, waiting=long, scheduled=False))
    status = decided(status, job, report=a_report(progress={"step": 1}, history=history)).status
    words = "m" * 2048
    status = decided(
        status, failed(TRAIN, message=a_failure_message(TRAIN, "Infrastructure", "Why", words)), **spec
    ).status
    assert len(json.dumps(status.to_json(), separators=(",", ":"))) < 14 * 1024


def test_a_finetune_that_is_over_never_gets_another_job() -> None:
    succeeded = decided(after_prepare(), done(PREPARE), done(TRAIN)).status
    broken = decided(after_prepare(), failed(TRAIN, exit_code=45)).status
    for status in (succeeded, broken):
        assert decided(status) == Decision(status)


def test_a_pod_without_a_place_is_told_in_the_schedulers_own_words() -> None:
    words = "Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    decision = decided(after_prepare(), a_job(TRAIN, 1, RUNNING, a_pod(scheduled=False, waiting=words)))
    condition = condition_of(decision.status, ConditionType.SCHEDULED)
    assert condition is not None
    assert (condition.status, condition.message) == ("False", words)
    assert decision.status.phase is Phase.PENDING


def test_progress_is_written_at_most_every_ten_seconds_and_never_lost() -> None:
    pod = a_pod(phase="Running", started_at=NOON)
    job = a_job(TRAIN, 1, RUNNING, pod)
    first = decided(after_prepare(), job, report=a_report(progress={"step": 1, "totalSteps": 9, "percent": 11}))
    assert first.status.progress is not None
    assert first.status.progress.step == 1
    soon = a_report(progress={"step": 2, "totalSteps": 9}, received_at=NOON + timedelta(seconds=4))
    second = decided(first.status, job, report=soon, seconds=4)
    assert second.status == first.status
    assert second.check_again == timedelta(seconds=6)
    last = decided(first.status, job, report=soon, seconds=10)
    assert last.status.progress is not None
    assert last.status.progress.step == 2, "the last report before a silence would never be shown"
    late = a_report(progress={"step": 3, "totalSteps": 9}, received_at=NOON + timedelta(seconds=10))
    third = decided(first.status, job, report=late, seconds=10)
    assert third.status.progress is not None
    assert third.status.progress.step == 3


def test_the_plan_is_shown_while_the_run_trains_and_after_it() -> None:
    plan = {"precision": "float32", "attention": "packed", "microBatchTokens": 512, "activationCheckpointing": False}
    job = a_job(TRAIN, 1, RUNNING, a_pod(phase="Running", started_at=NOON))
    running = decided(after_prepare(), job, report=a_report(plan=plan)).status
    assert running.plan is not None
    assert running.plan.micro_batch_tokens == 512
    assert decided(running, done(PREPARE), done(TRAIN)).status.plan == running.plan
    smaller = done(TRAIN, plan=plan | {"microBatchTokens": 256})
    assert decided(running, done(PREPARE), smaller).status.plan != running.plan


def test_a_report_of_an_earlier_attempt_changes_nothing() -> None:
    job = a_job(TRAIN, 2, RUNNING, a_pod(phase="Running", started_at=NOON))
    status = decided(decided(after_prepare(), failed(TRAIN, exit_code=143)).status, job).status
    assert decided(status, job, report=a_report(attempt=1, progress={"step": 8})).status == status


def test_publishing_is_seen_as_such() -> None:
    job = a_job(TRAIN, 1, RUNNING, a_pod(phase="Running", started_at=NOON))
    decision = decided(after_prepare(), job, report=a_report(activity="publishing", progress={"step": 9}))
    assert decision.status.phase is Phase.PUBLISHING
    assert is_true(decision.status, ConditionType.TRAINED)


def test_a_new_attempt_does_not_show_the_progress_of_the_last() -> None:
    job = a_job(TRAIN, 1, RUNNING, a_pod(phase="Running", started_at=NOON))
    report = a_report(activity="publishing", progress={"step": 9, "percent": 100})
    status = decided(after_prepare(), job, report=report).status
    again = decided(status, failed(TRAIN, exit_code=143), report=report).status
    assert again.progress is None
    assert again.phase is Phase.PENDING


SAVED = {"step": 7, "uri": "s3://out/checkpoints/step-7-abc", "savedAt": "2026-01-02T12:00:00Z"}


def test_a_checkpoint_and_the_best_loss_are_shown_as_reported() -> None:
    job = a_job(TRAIN, 1, RUNNING, a_pod(phase="Running", started_at=NOON))
    report = a_report(progress={"step": 9}, checkpoint=SAVED, best={"step": 6, "validationLoss": 0.5})
    status = decided(after_prepare(), job, report=report).status
    assert status.checkpoint is not None
    assert (status.checkpoint.step, status.checkpoint.uri) == (7, SAVED["uri"])
    assert status.best is not None
    assert (status.best.step, status.best.validation_loss) == (6, 0.5)


def test_a_further_attempt_shows_what_it_goes_on_from() -> None:
    """The last word of a pod that was told to leave: a checkpoint that no report had told of yet."""
    job = a_job(TRAIN, 1, RUNNING, a_pod(phase="Running", started_at=NOON))
    history = [{"step": step, "epoch": step / 10, "trainingLoss": 1.0} for step in (3, 7, 9)]
    progress = {"step": 9, "totalSteps": 90, "percent": 10, "epoch": 0.9, "etaSeconds": 5}
    best = {"step": 9, "validationLoss": 0.5}
    status = decided(after_prepare(), job, report=a_report(progress=progress, history=history, best=best)).status
    failure = {"class": "Preempted", "reason": "Terminated", "message": "told to stop"}
    message = RunResult.model_validate({"stage": "train", "failure": failure, "checkpoint": SAVED}).to_message()
    left = a_job(TRAIN, 1, FAILED, a_pod(phase="Failed", exit_code=143, message=message))
    decision = decided(status, left)
    again = decision.status
    assert decision.start == Attempt(TRAIN, 2)
    assert again.checkpoint is not None
    assert again.checkpoint.step == 7
    assert again.progress is not None
    assert (again.progress.step, again.progress.percent, again.progress.epoch) == (7, 7, 0.7)
    assert again.progress.eta_seconds is None
    assert [row.step for row in again.history] == [3, 7]
    assert again.best is None, "it was measured after the checkpoint, and is measured again"
    assert decided(again, left).status == again


def test_a_pod_of_a_deleted_finetune_is_left_alone() -> None:
    finetune = a_finetune(status=after_prepare())
    gone = finetune.metadata.model_copy(update={"deletion_timestamp": NOON.isoformat()})
    decision = decide(finetune.model_copy(update={"metadata": gone}), Observed(), some_settings(), NOON)
    assert decision == Decision(finetune.status)


def test_what_a_pod_says_cannot_colour_the_terminal_of_who_reads_it() -> None:
    message = a_failure_message(PREPARE, "InvalidData", "InvalidRow", "row \x1b[2J\x1b]0;owned\x07 is\nbroken")
    status = decided(decided(None).status, failed(PREPARE, message=message, exit_code=42)).status
    assert status.failure is not None
    assert status.failure.message == "row [2J ]0;owned is broken"
    assert all(condition.message.isprintable() for condition in status.conditions)


@pytest.mark.parametrize(
    ("uri", "seen"),
    [
        ("configmap://rows/a.jsonl", "file:///finetune/datasets/rows/a.jsonl"),
        ("pvc://claim/rows", "file:///finetune/volumes/claim/rows"),
        ("s3://data/a.jsonl", "s3://data/a.jsonl"),
    ],
)
def test_a_failure_names_a_dataset_as_its_user_wrote_it(uri: str, seen: str) -> None:
    spec: dict[str, Any] = {"datasets": [{"name": "rows", "uri": uri}]}
    message = a_failure_message(PREPARE, "InvalidData", "DatasetNotFound", f"{seen}: the file is not there")
    job = a_job(PREPARE, 1, FAILED, a_pod(phase="Failed", exit_code=42, message=message))
    failure = decided(decided(None, **spec).status, job, **spec).status.failure
    assert failure is not None
    assert failure.message == f"{uri}: the file is not there"
