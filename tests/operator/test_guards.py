"""A trainer of which nothing is heard: told, and stopped only where the spec says so."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.names import ConditionType, FailureClass, Phase
from finetune_api.status import FinetuneStatus
from finetune_operator.conditions import condition_of
from finetune_operator.decide import Decision
from finetune_operator.observed import Report
from finetune_operator.turns import turns
from finetune_operator.verdict import Attempt

from tests.builders import NOON, a_job, a_pod, a_report, a_result
from tests.operator.deciding import A_POD, COMPLETE, PREPARED, RUNNING, TRAIN, decided

TRAINING = a_job(TRAIN, 1, RUNNING, A_POD)
STEP = {"step": 410, "totalSteps": 1000}
GUARD: dict[str, Any] = {"guards": {"stallSeconds": 60}}
RESTART: dict[str, Any] = {"guards": {"stallSeconds": 60, "onStall": "Restart"}}


def heard(seconds: float, attempt: int = 1, **parts: Any) -> Report:
    """A report that came so long after noon."""
    return a_report(TRAIN, attempt, NOON + timedelta(seconds=seconds), **({"progress": STEP} | parts))


def training(**spec: Any) -> FinetuneStatus:
    """The status of a run that trains since noon, with a report of ten seconds later."""
    status = decided(decided(None, **spec).status, PREPARED, **spec).status
    return decided(status, PREPARED, TRAINING, seconds=10, report=heard(10), **spec).status


def progressing(status: FinetuneStatus) -> tuple[str, str, str] | None:
    found = condition_of(status, ConditionType.PROGRESSING)
    return (found.status.value, found.reason, found.message) if found else None


def test_silence_is_told_once_and_ends_nothing() -> None:
    status = training(**GUARD)
    early = decided(status, PREPARED, TRAINING, seconds=69, report=heard(10), **GUARD)
    assert (progressing(early.status), early.check_again) == (None, timedelta(seconds=1))
    silent = decided(early.status, PREPARED, TRAINING, seconds=70, report=heard(10), **GUARD)
    words = (
        "nothing was heard of the trainer since 12:00:10 UTC; it was training at step 410 of 1000; "
        "spec.guards.stallSeconds is 60"
    )
    assert progressing(silent.status) == ("False", "NoProgress", words)
    assert (silent.stop, silent.status.phase) == ((), Phase.TRAINING)
    stalled = condition_of(silent.status, ConditionType.STALLED)
    assert stalled is not None
    assert stalled.status.value == "False", "kstatus would call it failed"
    assert [(turn.warning, turn.reason) for turn in turns(early.status, silent.status)] == [(True, "NoProgress")]
    later = decided(silent.status, PREPARED, TRAINING, seconds=9000, report=heard(10), **GUARD)
    assert later.status == silent.status


def test_a_trainer_that_speaks_again_is_told_too() -> None:
    silent = decided(training(**GUARD), PREPARED, TRAINING, seconds=70, report=heard(10), **GUARD).status
    again = decided(silent, PREPARED, TRAINING, seconds=75, report=heard(74), **GUARD)
    assert progressing(again.status) == ("True", "Training", "the trainer tells of its progress again")
    assert again.check_again == timedelta(seconds=59)


@pytest.mark.parametrize(
    ("spec", "report"),
    [({"guards": {"stallSeconds": 0}}, None), ({}, None), (GUARD, heard(60, activity="publishing"))],
)
def test_nothing_is_said_of_a_trainer_that_may_be_silent(spec: dict[str, Any], report: Report | None) -> None:
    assert progressing(decided(training(**spec), PREPARED, TRAINING, seconds=100, report=report, **spec).status) is None


def test_a_guard_that_is_turned_off_says_no_more() -> None:
    silent = decided(training(**GUARD), PREPARED, TRAINING, seconds=70, report=heard(10), **GUARD).status
    off: dict[str, Any] = {"guards": {"stallSeconds": 0}}
    assert progressing(decided(silent, PREPARED, TRAINING, seconds=71, report=heard(10), **off).status) is None


def test_what_is_in_the_status_counts_after_a_restart_of_the_operator() -> None:
    assert progressing(decided(training(**GUARD), PREPARED, TRAINING, seconds=69, **GUARD).status) is None
    assert progressing(decided(training(**GUARD), PREPARED, TRAINING, seconds=70, **GUARD).status) is not None


def test_a_report_of_an_earlier_attempt_is_no_sign_of_this_one() -> None:
    second = replace(a_job(TRAIN, 2, RUNNING, a_pod(phase="Running", started_at=NOON + timedelta(seconds=100))))
    stopping = decided(training(**GUARD), PREPARED, TRAINING, seconds=90, suspend=True, **GUARD).status
    resumed = decided(stopping, PREPARED, seconds=95, **GUARD).status
    status = decided(resumed, PREPARED, second, seconds=101, **GUARD).status
    assert progressing(decided(status, PREPARED, second, seconds=159, report=heard(159), **GUARD).status) is None
    assert progressing(decided(status, PREPARED, second, seconds=160, report=heard(159), **GUARD).status) is not None


def busy(status: FinetuneStatus) -> tuple[str, str] | None:
    found = condition_of(status, ConditionType.GPU_BUSY)
    return (found.status.value, found.reason) if found else None


def test_gpus_that_hardly_compute_are_told_until_they_do() -> None:
    def after(status: FinetuneStatus, seconds: float, percent: int | None, **spec: Any) -> Decision:
        report = heard(seconds, metrics={"trainingLoss": 1.0, "gpuUtilization": percent})
        return decided(status, PREPARED, TRAINING, seconds=seconds, report=report, **spec)

    status = training()
    assert busy(after(status, 20, None).status) is None
    assert busy(after(status, 20, 5).status) is None
    idle = after(status, 20, 4)
    assert (busy(idle.status), idle.stop) == (("False", "GpuIdle"), ())
    assert idle.status.metrics is not None
    assert idle.status.metrics.gpu_utilization == 4
    assert busy(decided(idle.status, PREPARED, TRAINING, seconds=30).status) == ("False", "GpuIdle")
    assert busy(after(idle.status, 40, 80).status) == ("True", "Training")
    assert busy(after(idle.status, 40, 0, guards={"idlePercent": 0}).status) is None
    assert busy(decided(idle.status, PREPARED, TRAINING, seconds=40, suspend=True).status) is None


def test_where_the_spec_says_so_the_next_attempt_goes_on_and_counts() -> None:
    stopping = decided(training(**RESTART), PREPARED, TRAINING, seconds=70, report=heard(10), **RESTART)
    assert (stopping.stop, stopping.start) == ((TRAINING,), None)
    assert progressing(stopping.status) is None, "it does not run any more"
    leaving = replace(TRAINING, deleted_at=NOON)
    assert decided(stopping.status, PREPARED, leaving, seconds=80, **RESTART).start is None
    gone = decided(stopping.status, PREPARED, seconds=90, **RESTART)
    assert (gone.start, gone.status.retries) == (None, 1)
    assert gone.status.failure is not None
    assert (gone.status.failure.failure_class, gone.status.failure.reason) == (
        FailureClass.INFRASTRUCTURE,
        "NoProgress",
    )
    retried = decided(gone.status, PREPARED, seconds=100, **RESTART)
    assert retried.start == Attempt(TRAIN, 2)
    assert retried.status.active_seconds == 70


def test_a_run_that_hangs_again_and_again_is_held() -> None:
    spec = RESTART | {"retryLimit": 0}
    stopping = decided(training(**spec), PREPARED, TRAINING, seconds=70, report=heard(10), **spec).status
    held = decided(stopping, PREPARED, seconds=90, **spec)
    stalled = condition_of(held.status, ConditionType.STALLED)
    assert stalled is not None
    assert (held.start, stalled.reason) == (None, "RetriesExhausted")
    assert decided(held.status, PREPARED, seconds=100, **spec).status == held.status
    assert decided(held.status, PREPARED, seconds=100, **RESTART).status.retries == 1


def test_a_run_suspended_after_it_hung_once_goes_on_at_once_when_resumed() -> None:
    stopping = decided(training(**RESTART), PREPARED, TRAINING, seconds=70, report=heard(10), **RESTART).status
    waiting = decided(stopping, PREPARED, seconds=90, **RESTART).status
    retried = decided(waiting, PREPARED, seconds=100, **RESTART).status
    second = a_job(TRAIN, 2, RUNNING, a_pod(phase="Running", started_at=NOON + timedelta(seconds=100)))
    running = decided(retried, PREPARED, second, seconds=101, **RESTART).status
    suspended = decided(running, PREPARED, second, seconds=110, suspend=True, **RESTART).status
    paused = decided(suspended, PREPARED, seconds=120, suspend=True, **RESTART).status
    resumed = decided(paused, PREPARED, seconds=130, **RESTART)
    assert (resumed.start, resumed.status.retries) == (Attempt(TRAIN, 3), 1)


def test_training_that_early_stopping_has_ended_is_told_as_such() -> None:
    result = a_result(TRAIN, progress={"step": 60, "totalSteps": 90, "percent": 100})
    report = a_report(activity="publishing", progress={"step": 60, "totalSteps": 90, "percent": 100})
    publishing = decided(training(), PREPARED, TRAINING, seconds=20, report=report).status
    done = a_job(TRAIN, 1, COMPLETE, a_pod(phase="Succeeded", started_at=NOON, message=result.to_message()))
    for status in (publishing, decided(publishing, PREPARED, done, seconds=30).status):
        trained = condition_of(status, ConditionType.TRAINED)
        assert trained is not None
        assert (trained.status.value, trained.reason) == ("True", "StoppedEarly")
        assert trained.message.startswith("60 of 90 optimizer steps are done: the dev loss has stopped falling")
