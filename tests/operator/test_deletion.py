"""A Finetune whose files go with it: children first, then the files, then itself, and never for ever."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.failures import POLICIES
from finetune_api.names import CLEANUP_FINALIZER, LABEL_CLEANUP_OF, LABEL_UID, FailureClass
from finetune_api.resource import Finetune
from finetune_api.run import CleanupResult, RunRoot
from finetune_api.status import Failure
from finetune_operator.deletion import Departure, depart, is_refused_for_good, needs_finalizer
from finetune_operator.errands import cleanup_job
from finetune_operator.observed import Cleanup, JobState, Observed, observed_cleanup

from tests.builders import NOON, UID, a_finetune, a_job, a_pod, some_settings

DELETE: dict[str, Any] = {"output": {"uri": "s3://out/models", "deletionPolicy": "Delete"}}
LIMIT = 300 + 600
"""Grace period of the pods, and the time for cleaning up."""
LATER = NOON + timedelta(seconds=9)


def a_leaving_finetune(**spec: Any) -> Finetune:
    finetune = a_finetune(**DELETE, **spec)
    changes = {"deletion_timestamp": NOON, "finalizers": [CLEANUP_FINALIZER]}
    return finetune.model_copy(update={"metadata": finetune.metadata.model_copy(update=changes)})


def departed(seconds: float = 0, **observed: Any) -> Departure:
    return depart(a_leaving_finetune(), Observed(**observed), some_settings(), NOON + timedelta(seconds=seconds))


def a_cleanup(state: JobState = JobState.RUNNING, message: str | None = None, waiting: str | None = None) -> Cleanup:
    return Cleanup(state, NOON, message, waiting)


def denied() -> str:
    kind = FailureClass.ACCESS_DENIED
    why = "DeleteObject on s3://out/a was denied"
    remedy = "Allow it, then create the Finetune again."
    failure = Failure(failure_class=kind, reason="AccessDenied", message=why, remedy=remedy)
    return CleanupResult(failure=failure).to_message()


def test_only_a_run_whose_files_go_with_it_waits_for_anything() -> None:
    assert not needs_finalizer(a_finetune())
    assert needs_finalizer(a_finetune(**DELETE))
    assert not needs_finalizer(a_leaving_finetune())


def test_a_finalizer_that_somebody_has_set_by_hand_removes_nothing() -> None:
    by_hand = a_leaving_finetune()
    retained = by_hand.model_copy(update={"spec": a_finetune().spec})
    gone = depart(retained, Observed(jobs=(a_job(),)), some_settings(), NOON)
    assert (gone.clean, gone.stop) == (False, ())
    assert gone.farewell is not None
    assert (gone.farewell.reason, "deletionPolicy is Retain" in gone.farewell.message) == ("Retained", True)


def test_its_children_go_first() -> None:
    job, reading = a_job(), replace(a_job(), name="reading")
    first = departed(jobs=(job,), readings=(reading,))
    assert (first.stop, first.clean, first.farewell) == ((job, reading), False, None)
    leaving = replace(job, deleted_at=NOON)
    assert departed(jobs=(leaving,)) == Departure(check_again=timedelta(seconds=5)), "a Job is told to go once"
    assert not departed(orphans=(a_pod(phase="Running"),)).clean, "it may still write"
    assert departed(orphans=(a_pod(phase="Failed"),)).clean


def test_it_goes_once_its_files_are_removed() -> None:
    assert departed(cleanup=a_cleanup()).farewell is None
    gone = departed(cleanup=a_cleanup(JobState.COMPLETE, CleanupResult(removed=12).to_message())).farewell
    assert gone is not None
    assert (gone.warning, gone.reason) == (False, "CleanedUp")
    assert gone.message == f"12 objects were removed below s3://out/models/team-a/story/{UID}"


@pytest.mark.parametrize(
    ("seconds", "observed", "words"),
    [
        (0, {"cleanup": a_cleanup(JobState.FAILED, denied())}, "DeleteObject on s3://out/a was denied"),
        (0, {"cleanup": a_cleanup(JobState.FAILED, "?", "Job was active longer")}, "Job was active longer"),
        (0, {"cleanup": a_cleanup(JobState.FAILED)}, "nobody says why"),
        (610, {"cleanup": a_cleanup(waiting="Unschedulable: 0/3 nodes")}, "Unschedulable: 0/3 nodes"),
        (610, {"cleanup": a_cleanup()}, "the cleanup Job still runs"),
        (LIMIT, {"jobs": (replace(a_job(), deleted_at=NOON),)}, "story-9f3c2a10-train-1 has not gone yet"),
        (LIMIT + 9, {"orphans": (a_pod(phase="Running", leaves_by=LATER),)}, "story-pod has not gone yet"),
        (LIMIT, {"orphans": (a_pod(phase="Running"),)}, "story-pod has not gone yet"),
    ],
)
def test_it_goes_without_when_they_cannot_be_removed_in_time(
    seconds: int, observed: dict[str, Any], words: str
) -> None:
    if seconds:
        assert departed(seconds - 1, **observed).farewell is None
    farewell = departed(seconds, **observed).farewell
    assert farewell is not None
    assert (farewell.warning, farewell.reason) == (True, "CleanupFailed")
    assert f"may be left at s3://out/models/team-a/story/{UID}" in farewell.message
    assert words in farewell.message
    assert "again" not in farewell.message, "it is gone"


def test_an_operator_that_comes_late_has_all_the_time_that_there_is() -> None:
    running, late = a_job(), 10**6
    assert departed(late, jobs=(running,)).stop == (running,)
    assert departed(late).clean
    assert is_refused_for_good(a_leaving_finetune(), some_settings(), NOON + timedelta(seconds=LIMIT))
    assert not is_refused_for_good(a_leaving_finetune(), some_settings(), NOON + timedelta(seconds=LIMIT - 1))


def test_the_cleanup_outlives_the_finetune_and_then_goes_by_itself() -> None:
    job = cleanup_job(
        a_leaving_finetune(storage={"credentialsSecretRef": {"name": "s3"}}), some_settings(cleanup_seconds=77)
    )
    assert "ownerReferences" not in job["metadata"]
    assert job["metadata"]["labels"][LABEL_CLEANUP_OF] == UID
    assert LABEL_UID not in job["metadata"]["labels"], "its pod would look like one that is left of an attempt"
    spec = job["spec"]
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (77, 600)
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [POLICIES[FailureClass.ACCESS_DENIED].exit_code]
    (order,) = spec["template"]["metadata"]["annotations"].values()
    root = RunRoot.model_validate_json(order)
    assert root.output_uri == f"s3://out/models/team-a/story/{UID}"
    assert root.storage.credentials is not None


def test_what_is_known_of_a_cleanup_is_the_newest_word_of_its_pods() -> None:
    body = cleanup_job(a_leaving_finetune(), some_settings(cleanup_seconds=77))
    job = body | {"metadata": body["metadata"] | {"uid": "job-uid"}, "status": {}}
    assert observed_cleanup([], []) is None
    job["metadata"]["creationTimestamp"] = NOON.isoformat()
    assert observed_cleanup([job], []) == a_cleanup()
    pods = [a_pod_body(2, message="second"), a_pod_body(1, message="first"), a_pod_body(3, waiting="ErrImagePull")]
    assert observed_cleanup([job], pods) == a_cleanup(message="second", waiting="ErrImagePull")
    status = {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}]}
    assert observed_cleanup([job | {"status": status}], []) == a_cleanup(JobState.FAILED, waiting="too long")


def a_pod_body(minute: int, message: str | None = None, waiting: str | None = None) -> dict[str, Any]:
    state = {"terminated": {"message": message}} if message else {"waiting": {"reason": waiting}}
    metadata = {"name": f"pod-{minute}", "uid": f"{minute}", "creationTimestamp": f"2026-01-01T12:0{minute}:00Z"}
    owners = [{"uid": "job-uid", "controller": True}]
    status = {"containerStatuses": [{"name": "trainer", "state": state}]}
    return {"metadata": metadata | {"ownerReferences": owners}, "status": status}
