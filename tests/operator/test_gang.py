"""Several pods that train together: they start, fail and end as one."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api import names
from finetune_api.names import ConditionType, FailureClass, Phase, StageState
from finetune_api.resource import Finetune
from finetune_api.run import RunResult
from finetune_api.status import FinetuneStatus
from finetune_operator.attempts import failure_of
from finetune_operator.conditions import condition_of
from finetune_operator.decide import Decision, decide
from finetune_operator.observed import Job, JobState, Observed, Pod, observed_children
from finetune_operator.verdict import Attempt

from tests.builders import (
    NOON,
    UID,
    a_failed_pod,
    a_failure_message,
    a_finetune,
    a_job,
    a_pod,
    a_report,
    a_result,
    some_settings,
)
from tests.operator.deciding import COMPLETE, FAILED, PREPARED, RUNNING, TRAIN, train_entry

DONE = RunResult(stage=TRAIN).to_message()
"""What a pod says that is not the first one, when all went well."""


def a_gang(state: JobState = RUNNING, *pods: Pod, **facts: Any) -> Job:
    return replace(a_job(TRAIN, 1, state, *pods), size=2, **facts)


def member(index: int, **facts: Any) -> Pod:
    return a_pod(**{"name": f"pod-{index}", "index": index, "phase": "Running", "started_at": NOON, **facts})


def dead(index: int, kind: FailureClass, reason: str = "Why", **facts: Any) -> Pod:
    message = a_failure_message(TRAIN, kind, reason, f"said by pod {index}")
    return a_failed_pod(**{"name": f"pod-{index}", "index": index, "message": message, **facts})


def taken(pod: Pod) -> Pod:
    return replace(pod, disruption="NodeLost")


def decided(status: FinetuneStatus | None, *jobs: Job, seconds: float = 0, **spec: Any) -> Decision:
    finetune: Finetune = a_finetune(status=status, trainer={"nodes": 2}, **spec)
    return decide(finetune, Observed(jobs=(PREPARED, *jobs)), some_settings(), NOON + timedelta(seconds=seconds))


def started() -> FinetuneStatus:
    """The status once the gang is asked for."""
    return decided(decided(None).status).status


LOST = dead(0, FailureClass.INFRASTRUCTURE, "PeerLost")
TOLD = dead(0, FailureClass.PREEMPTED, "Terminated", exit_code=143)
SILENT = a_failed_pod(name="pod-1", index=1, exit_code=137)


@pytest.mark.parametrize(
    ("pods", "kind", "reason"),
    [
        ([TOLD, dead(1, FailureClass.GPU_OUT_OF_MEMORY)], FailureClass.GPU_OUT_OF_MEMORY, "Why"),
        ([LOST, dead(1, FailureClass.DIVERGED)], FailureClass.DIVERGED, "Why"),
        ([LOST, dead(1, FailureClass.INVALID_CONFIG)], FailureClass.INVALID_CONFIG, "Why"),
        ([TOLD, dead(1, FailureClass.INFRASTRUCTURE, "S3")], FailureClass.INFRASTRUCTURE, "S3"),
        ([LOST, dead(1, FailureClass.INFRASTRUCTURE, "S3")], FailureClass.INFRASTRUCTURE, "S3"),
        ([LOST, dead(1, FailureClass.PREEMPTED, "Terminated")], FailureClass.INFRASTRUCTURE, "PeerLost"),
        ([LOST, SILENT], FailureClass.INFRASTRUCTURE, "NoMessage"),
        ([TOLD, replace(SILENT, exit_code=44)], FailureClass.GPU_OUT_OF_MEMORY, "NoMessage"),
        ([LOST, replace(SILENT, exit_reason="OOMKilled")], FailureClass.HOST_OUT_OF_MEMORY, "OOMKilled"),
        ([TOLD, replace(SILENT, reason="Evicted")], FailureClass.DISK_FULL, "Evicted"),
        ([TOLD, replace(SILENT, exit_code=None, reason="NoGpu")], FailureClass.INFRASTRUCTURE, "NoGpu"),
        ([LOST, taken(SILENT)], FailureClass.PREEMPTED, "NodeLost"),
        ([LOST, replace(taken(SILENT), reason="Evicted")], FailureClass.PREEMPTED, "NodeLost"),
        ([dead(0, FailureClass.INFRASTRUCTURE, "RankDied"), taken(SILENT)], FailureClass.PREEMPTED, "NodeLost"),
        ([TOLD, dead(1, FailureClass.PREEMPTED, "Terminated")], FailureClass.PREEMPTED, "Terminated"),
        ([LOST, LOST], FailureClass.INFRASTRUCTURE, "PeerLost"),
        ([], FailureClass.INFRASTRUCTURE, "PodLost"),
    ],
)
def test_the_failure_that_explains_the_others_is_the_gangs(pods: list[Pod], kind: FailureClass, reason: str) -> None:
    for seen in (pods, [*reversed(pods)]):
        found = failure_of(a_gang(FAILED, *seen), None)
        assert (found.failure_class, found.reason) == (kind, reason)


def test_what_the_first_pod_reported_counts_once_it_is_gone() -> None:
    failure = {"class": "Diverged", "reason": "NotFinite", "message": "the loss is no number"}
    report = a_report(result={"stage": "train", "failure": failure})
    peer = dead(1, FailureClass.INFRASTRUCTURE, "PeerLost")
    assert failure_of(a_gang(FAILED, peer), report).failure_class is FailureClass.DIVERGED


def test_what_a_pod_died_of_is_noted_before_it_is_gone() -> None:
    running = decided(started(), a_gang(RUNNING, member(0), member(1))).status
    breaking = a_gang(RUNNING, member(0), dead(1, FailureClass.GPU_OUT_OF_MEMORY), is_failing=True)
    noted = decided(running, breaking, seconds=10).status
    ended = decided(noted, a_gang(FAILED, LOST), seconds=20)
    assert (ended.start, ended.status.memory_rung) == (Attempt(TRAIN, 2), 1)


def test_a_deleted_member_restarts_the_gang_at_once_and_counts_against_nothing() -> None:
    running = decided(started(), a_gang(RUNNING, member(0), member(1))).status
    noted = decided(running, a_gang(RUNNING, member(0), member(1, disruption="PodDeleted")), seconds=10).status
    alone = a_gang(RUNNING, LOST, is_failing=True)
    still = decided(noted, alone, seconds=20)
    assert still.start is None, "the Job controller is still deleting its pods"
    ended = decided(still.status, a_gang(FAILED, LOST), seconds=30)
    assert ended.start == Attempt(TRAIN, 2)
    assert (ended.status.restarts, ended.status.retries) == (1, 0)


def test_no_gang_starts_while_a_pod_of_the_last_one_is_left() -> None:
    running = decided(started(), a_gang(RUNNING, member(0), member(1))).status
    assert decided(running, a_gang(FAILED, TOLD, member(1))).start is None
    assert decided(running, a_gang(FAILED, TOLD)).start == Attempt(TRAIN, 2)


def test_a_gang_trains_once_its_last_pod_has_started() -> None:
    late = member(1, phase="Pending", started_at=None, scheduled=False, waiting="Unschedulable: 0/3 nodes")
    waiting = decided(started(), a_gang(RUNNING, member(0, scheduled=True), late), seconds=10)
    assert (waiting.status.phase, train_entry(waiting.status).state) == (Phase.PENDING, StageState.PENDING)
    condition = condition_of(waiting.status, ConditionType.SCHEDULED)
    assert condition is not None
    assert (condition.status, condition.message) == ("False", "Unschedulable: 0/3 nodes")
    held = decided(waiting.status, a_gang(RUNNING, member(0), late), seconds=3600)
    assert held.status.phase is Phase.SUSPENDED, "half a gang would hold its GPUs for ever"

    last = member(1, started_at=NOON + timedelta(seconds=100))
    running = decided(waiting.status, a_gang(RUNNING, member(0), last), seconds=110).status
    assert (running.phase, train_entry(running).started_at) == (Phase.TRAINING, NOON + timedelta(seconds=100))


def test_the_time_of_a_gang_that_breaks_up_is_counted_once() -> None:
    running = decided(started(), a_gang(RUNNING, member(0), member(1))).status
    breaking = decided(running, a_gang(RUNNING, LOST, is_failing=True), seconds=50).status
    assert train_entry(breaking).state is StageState.RUNNING
    gone = decided(breaking, a_gang(RUNNING, is_failing=True), seconds=55).status
    ended = decided(gone, a_gang(FAILED, LOST, finished_at=NOON + timedelta(seconds=60)), seconds=61, retryLimit=0)
    assert ended.status.active_seconds == 60


def test_the_first_pod_alone_says_what_came_of_it() -> None:
    first = member(0, phase="Succeeded", message=a_result(TRAIN).to_message())
    other = member(1, phase="Succeeded", message=DONE)
    for pods in ([first, other], [other, first]):
        assert decided(started(), a_gang(COMPLETE, *pods)).status.phase is Phase.SUCCEEDED
    lost = decided(started(), a_gang(COMPLETE, replace(first, message=None), other)).status
    assert lost.phase is not Phase.SUCCEEDED


def test_what_is_published_stays_so_whatever_becomes_of_another_pod() -> None:
    first = member(0, phase="Succeeded", message=a_result(TRAIN).to_message())
    ended = decided(started(), a_gang(FAILED, first, dead(1, FailureClass.INFRASTRUCTURE)))
    assert (ended.status.phase, ended.start) == (Phase.SUCCEEDED, None)


def a_job_body(**parts: Any) -> dict[str, Any]:
    labels = {names.QUEUE_PRIORITY_LABEL: "high"}
    owners = [{"uid": UID, "controller": True}]
    metadata = {"name": "story-9f3c2a10-train-1", "uid": "job-uid", "labels": labels, "ownerReferences": owners}
    return {
        "metadata": metadata | parts.get("metadata", {}),
        "spec": {"parallelism": 2} | parts.get("spec", {}),
        "status": parts.get("status", {}),
    }


def a_pod_body(index: int, phase: str = "Running", **metadata: Any) -> dict[str, Any]:
    owners = [{"uid": "job-uid", "controller": True}]
    annotations = {names.NODE_RANK_ANNOTATION: str(index)}
    known = {"name": f"job-{index}", "uid": f"uid-{index}", "ownerReferences": owners, "annotations": annotations}
    return {"metadata": known | metadata, "status": {"phase": phase}}


GOING = {"deletionTimestamp": "2026-01-01T12:00:00Z"}


def test_a_job_knows_its_gang() -> None:
    (job,) = observed_children([a_job_body()], [a_pod_body(1), a_pod_body(0)], UID).jobs
    assert [pod.index for pod in job.pods] == [0, 1]
    assert (job.size, job.queue_priority, job.is_failing) == (2, "high", False)


@pytest.mark.parametrize(
    ("job", "other", "taken"),
    [
        (a_job_body(), a_pod_body(0), True),
        (a_job_body(), a_pod_body(0, phase="Failed"), False),
        (a_job_body(status={"conditions": [{"type": "FailureTarget", "status": "True"}]}), a_pod_body(0), False),
        (a_job_body(spec={"suspend": True}), a_pod_body(0), False),
        (a_job_body(metadata=GOING), a_pod_body(0), False),
    ],
)
def test_a_pod_is_taken_away_if_nobody_who_acts_for_the_run_deletes_it(
    job: dict[str, Any], other: dict[str, Any], taken: bool
) -> None:
    (found,) = observed_children([job], [other, a_pod_body(1, **GOING)], UID).jobs
    assert found.pods[1].disruption == ("PodDeleted" if taken else None)
