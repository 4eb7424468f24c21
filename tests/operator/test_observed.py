"""What a pass makes of children that somebody has touched."""

from datetime import timedelta
from typing import Any

import pytest
from finetune_api import names
from finetune_api.names import Stage
from finetune_operator.object_names import child_name
from finetune_operator.observed import JobState, Observed, observed_children

from tests import builders
from tests.builders import NOON, UID, a_finetune, a_pod


def a_job(name: str, **metadata: Any) -> dict[str, Any]:
    owners = [{"uid": UID, "controller": True}]
    return {"metadata": {"name": name, "uid": f"{name}-uid", "ownerReferences": owners} | metadata}


@pytest.mark.parametrize("stage", list(Stage))
def test_a_job_whose_labels_were_edited_is_still_the_attempt_that_it_was(stage: Stage) -> None:
    name = child_name(a_finetune(), stage, 12)
    (job,) = observed_children([a_job(name, labels={names.LABEL_ATTEMPT: "?"})], [], UID).jobs
    assert (job.stage, job.attempt) == (stage, 12)


@pytest.mark.parametrize("index", ["first", "9" * 5000])
def test_a_pod_whose_index_was_edited_stops_no_pass(index: str) -> None:
    job = a_job("story-9f3c2a10-train-1")
    pod = a_job("pod", annotations={names.NODE_RANK_ANNOTATION: index})
    pod["metadata"]["ownerReferences"] = [{"uid": job["metadata"]["uid"], "controller": True}]
    (seen,) = observed_children([job], [pod], UID).jobs
    assert [(pod.index, pod.is_of_job) for pod in seen.pods] == [(0, True)]


def test_a_job_that_somebody_has_given_no_pods_stops_no_pass() -> None:
    (job,) = observed_children([a_job("story-9f3c2a10-train-1") | {"spec": {"parallelism": 0}}], [], UID).jobs
    assert (job.size, job.has_started) == (1, False)


def test_somebody_elses_job_in_our_finetunes_name_is_no_attempt() -> None:
    jobs = observed_children([a_job("notebook"), a_job("story-train-0"), a_job("story-train-1-copy")], [], UID).jobs
    assert jobs == ()


def test_only_pods_that_should_have_left_and_may_still_run_are_overdue() -> None:
    leaving = a_pod(name="leaving", phase="Running", leaves_by=NOON)
    later = a_pod(name="later", phase="Running", leaves_by=NOON + timedelta(seconds=1))
    ended = a_pod(name="ended", phase="Failed", leaves_by=NOON)
    orphan = a_pod(name="orphan", phase="Pending", leaves_by=NOON)
    job = builders.a_job(Stage.TRAIN, 1, JobState.RUNNING, leaving, later, ended, a_pod(phase="Running"))
    seen = Observed(jobs=(job,), orphans=(orphan,))
    assert [pod.name for pod in seen.overdue_pods(NOON)] == ["orphan", "leaving"]


@pytest.mark.parametrize(
    ("reason", "word"), [("DeletionByPodGC", "DeletionByPodGC"), ("two words!", "twowords"), (None, "Unknown")]
)
def test_a_pod_that_was_taken_away_is_so_whatever_reason_is_given(reason: str | None, word: str) -> None:
    job, given = a_job("story-9f3c2a10-train-1"), {} if reason is None else {"reason": reason}
    pod = a_job("pod") | {"status": {"conditions": [{"type": "DisruptionTarget", "status": "True"} | given]}}
    pod["metadata"]["ownerReferences"] = [{"uid": job["metadata"]["uid"], "controller": True}]
    (seen,) = observed_children([job], [pod], UID).jobs
    assert [pod.disruption for pod in seen.pods] == [word]
