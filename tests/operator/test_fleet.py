"""What Prometheus is told of the runs there are, and of what they came to."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from finetune_api.money import CostLedger, CostStatus
from finetune_api.names import FailureClass, Phase, Stage, StageState
from finetune_api.placement import Trainer
from finetune_api.reasons import Reason
from finetune_api.status import FinetuneStatus, StageStatus
from finetune_operator import tally
from finetune_operator.attempts import a_failure
from finetune_operator.fleet import WATCHED, Fleet
from prometheus_client import CollectorRegistry, Metric

from tests.builders import a_body

VALIDATED = {"type": "DataValidated", "status": "True"}


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def a_run(phase: str, *conditions: dict[str, str], gpus: int = 1, **status: Any) -> dict[str, Any]:
    body = a_body(trainer={"nodes": 2, "gpusPerNode": gpus})
    return body | {"status": {"phase": phase, "conditions": list(conditions), **status}}


def told(fleet: Fleet) -> Callable[..., float | None]:
    registry = CollectorRegistry()
    registry.register(fleet)
    return lambda name, **labels: registry.get_sample_value(name, labels)


def test_runs_and_gpus_are_counted_by_phase_and_an_empty_phase_is_zero() -> None:
    fleet = Fleet()
    fleet.note(1, a_run("Training", VALIDATED, gpus=4))
    fleet.note(2, a_run("Queued", VALIDATED, gpus=1))
    fleet.note(3, a_run("Preparing", gpus=8))
    fleet.note(4, a_run("Succeeded", VALIDATED, gpus=8))
    fleet.note(5, a_body())
    value = told(fleet)
    assert {phase: value("finetune_runs", phase=phase) for phase in Phase} == dict.fromkeys(Phase, 0) | dict.fromkeys(
        [Phase.TRAINING, Phase.QUEUED, Phase.PREPARING, Phase.SUCCEEDED, Phase.PENDING], 1
    )
    gpus = {phase: value("finetune_gpus", phase=phase) for phase in Phase}
    assert gpus == dict.fromkeys(Phase, 0) | {Phase.TRAINING: 8, Phase.QUEUED: 2}


def test_what_stalls_is_counted_by_class_and_a_cancelled_run_is_none_of_them() -> None:
    fleet, stalled = Fleet(), {"type": "Stalled", "status": "True"}
    fleet.note(1, a_run("Failed", stalled, failure={"class": "Diverged"}))
    fleet.note(2, a_run("Suspended", stalled, failure={"class": "DeadlineExceeded"}))
    fleet.note(3, a_run("Training", failure={"class": "Infrastructure"}))
    fleet.note(4, a_run("Cancelled", stalled))
    value = told(fleet)
    found = {kind for kind in FailureClass if value("finetune_runs_stalled", **{"class": kind})}
    assert found == {FailureClass.DIVERGED, FailureClass.DEADLINE_EXCEEDED}


def test_the_longest_wait_and_the_oldest_progress_are_told() -> None:
    fleet = Fleet()
    fleet.note(1, a_run("Pending", stages=[{"name": "train", "state": "Pending", "waitingSince": ago(500)}]))
    fleet.note(2, a_run("Pending", stages=[{"name": "prepare", "state": "Pending", "waitingSince": ago(20)}]))
    fleet.note(3, a_run("Training", stages=[{"name": "train", "startedAt": ago(90)}]))
    fleet.note(4, a_run("Training", progress={"updatedAt": ago(5)}))
    fleet.note(5, a_run("Succeeded", progress={"updatedAt": ago(9000)}))
    value = told(fleet)
    assert value("finetune_longest_wait_seconds", phase="Pending") == pytest.approx(500, abs=5)
    assert value("finetune_longest_wait_seconds", phase="Queued") == 0
    assert value("finetune_oldest_progress_seconds") == pytest.approx(90, abs=5)


def test_what_goes_badly_is_counted_by_the_condition_that_says_so() -> None:
    fleet = Fleet()
    fleet.note(1, a_run("Training", {"type": "GpuBusy", "status": "False"}, {"type": "Progressing", "status": "True"}))
    fleet.note(2, a_run("Pending", {"type": "Scheduled", "status": "False"}))
    value = told(fleet)
    found = {kind: value("finetune_runs_troubled", condition=kind) for kind in WATCHED}
    assert found == {"Scheduled": 1, "Progressing": 0, "GpuBusy": 1}


def test_a_run_that_is_gone_is_counted_no_longer() -> None:
    fleet = Fleet()
    for key in (1, 2, 3):
        fleet.note(key, a_run("Training", VALIDATED))
    fleet.forget(1)
    fleet.keep([2])
    assert told(fleet)("finetune_runs", phase="Training") == 1


def test_words_of_another_version_of_the_operator_are_no_error() -> None:
    fleet = Fleet()
    fleet.note(1, a_run("Dreaming", {"type": "Stalled", "status": "True"}, failure={"class": "Unheard"}))
    assert told(fleet)("finetune_runs", phase="Pending") == 1


def test_a_run_of_another_controller_is_not_counted() -> None:
    fleet = Fleet()
    fleet.note(1, a_run("Training", VALIDATED))
    fleet.note(1, a_body(managedBy="example.com/another"))
    assert told(fleet)("finetune_runs", phase="Training") == 0


def trained(state: StageState, seconds: int, attempt: int = 1, **facts: Any) -> FinetuneStatus:
    stage = StageStatus(name=Stage.TRAIN, state=state, attempt=attempt)
    return FinetuneStatus(stages=[stage], active_seconds=seconds, **facts)


ENDS = {
    "succeeded": (trained(StageState.SUCCEEDED, 100), tally.AttemptEnd.SUCCEEDED),
    "failed": (trained(StageState.FAILED, 100), tally.AttemptEnd.FAILED),
    "failed, the next one asked for": (trained(StageState.PENDING, 100, 2), tally.AttemptEnd.FAILED),
    "preempted": (trained(StageState.PENDING, 100, 2, restarts=1), tally.AttemptEnd.PREEMPTED),
    "suspended": (trained(StageState.STOPPED, 100), tally.AttemptEnd.STOPPED),
    "taken back by its queue": (trained(StageState.PENDING, 100), tally.AttemptEnd.STOPPED),
}


@pytest.mark.parametrize("case", ENDS)
def test_gpu_time_is_counted_by_how_its_attempt_ended(case: str) -> None:
    after, end = ENDS[case]
    counted = tally.GPU_SECONDS.labels(end)._value
    before = counted.get()
    tally.count(trained(StageState.RUNNING, 40), after, Trainer(nodes=2, gpus_per_node=8))
    assert counted.get() - before == 60 * 16


def costing(spent: str, lost: str, ledger: str | None = None, phase: Phase = Phase.TRAINING) -> FinetuneStatus:
    closed = CostLedger(lost=ledger) if ledger else None
    return FinetuneStatus(phase=phase, cost=CostStatus(currency="XTS", spent=spent, lost=lost, ledger=closed))


def test_money_is_counted_as_it_is_spent_and_lost() -> None:
    story = [
        FinetuneStatus(),
        costing("1.00", "0.00"),
        costing("2.00", "0.75"),  # Told to leave; its checkpoint may still come.
        costing("2.00", "0.25", ledger="0.25"),
        costing("3.50", "1.00", ledger="0.25", phase=Phase.FAILED),
    ]
    for before, after in pairwise(story):
        tally.count(before, after, Trainer())
    assert tally.COST.labels("XTS")._value.get() == 3.5
    assert tally.LOST_COST.labels("XTS")._value.get() == 1.0


def test_each_failed_attempt_is_counted_once() -> None:
    lost = a_failure(FailureClass.INFRASTRUCTURE, Reason.POD_LOST, "gone")
    first = FinetuneStatus(failure=lost, retries=1)
    assert list(tally.failed_attempts(FinetuneStatus(), first)) == [FailureClass.INFRASTRUCTURE]
    assert list(tally.failed_attempts(first, first)) == []
    assert list(tally.failed_attempts(first, FinetuneStatus(failure=lost, retries=2))) == [FailureClass.INFRASTRUCTURE]
    assert list(tally.failed_attempts(first, FinetuneStatus(failure=lost, retries=1, restarts=1))) == [
        FailureClass.PREEMPTED
    ]
    assert list(tally.failed_attempts(first, FinetuneStatus())) == []


def test_no_label_takes_more_than_a_handful_of_values() -> None:
    fleet = Fleet()
    for number in range(300):
        fleet.note(number, a_run("Training", VALIDATED) | {"metadata": {"name": f"run-{number}"}})
    families: list[Metric] = list(fleet.collect())
    assert max(len(family.samples) for family in families) <= max(len(Phase), len(FailureClass))
