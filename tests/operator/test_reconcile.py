"""What a pass may conclude from what the watches have told, and what it must read first."""

from dataclasses import replace
from typing import Any, cast

import pytest
from finetune_api.names import Stage
from finetune_api.resource import Finetune
from finetune_api.status import FinetuneStatus
from finetune_operator.api_server import Conflict
from finetune_operator.cluster import Cluster, Key
from finetune_operator.decide import Decision, decide
from finetune_operator.mirror import Mirror
from finetune_operator.observed import JobState, Observed
from finetune_operator.reconcile import FIRST_ATTEMPT, Reconciler, is_beginning
from finetune_operator.reports import ReportBook
from finetune_operator.verdict import Attempt

from tests.builders import NOON, a_body, a_finetune, a_job, a_pod, a_result, some_settings
from tests.operator.test_mirror import a_child

PREPARED = a_job(Stage.PREPARE, 1, JobState.COMPLETE, a_pod(message=a_result(Stage.PREPARE).to_message()))
KEY = Key("team-a", "run")
ON_CPU: dict[str, Any] = {"trainer": {"gpusPerNode": 0}}


class Quiet:
    """An API server that nobody has to ask."""

    @property
    def troubles(self) -> "Quiet":
        return self

    async def get_bases(self, _: Finetune) -> tuple[Finetune, ...]:
        return ()

    async def told(self, observed: Observed, _: str) -> Observed:
        return observed


def a_reconciler(cluster: Quiet, mirror: Mirror) -> Reconciler:
    return Reconciler(cast(Cluster, cluster), mirror, ReportBook(), some_settings())


def a_mirror(*jobs: dict[str, Any]) -> Mirror:
    """The mirror of a run that trains; it has been told of no pod."""
    status, settings = None, some_settings()
    for seen in (Observed(), Observed(jobs=(PREPARED,)), Observed(jobs=(PREPARED, a_running_job()))):
        status = decide(a_finetune(status=status, **ON_CPU), seen, settings, NOON).status
    assert status is not None
    mirror = Mirror([], lambda key: None)
    mirror.note(KEY, _as_stored("5", status))
    mirror._jobs[0].replace(jobs)
    mirror._pods[0].replace([])
    return mirror


def _as_stored(version: str, status: FinetuneStatus) -> dict[str, Any]:
    body = a_body("run", **ON_CPU) | {"status": status.to_json()}
    body["metadata"] |= {"uid": "run-uid", "resourceVersion": version}
    return body


def a_running_job() -> Any:
    return a_job(Stage.TRAIN, 1, JobState.RUNNING, a_pod(phase="Running", started_at=NOON))


FAILED = {"type": "Failed", "status": "True", "lastTransitionTime": "2026-01-01T12:01:00Z"}


@pytest.mark.parametrize(("conditions", "is_enough"), [([], True), ([FAILED], False)], ids=["runs", "has-failed"])
async def test_why_an_attempt_failed_is_concluded_from_nothing_but_what_is_read_then(
    conditions: list[dict[str, str]], is_enough: bool
) -> None:
    """The watch of pods may be behind that of Jobs: what looks like a lost pod may have named a wrong row."""
    mirror, cluster = a_mirror(a_child("a", 6, conditions=conditions)), Quiet()
    glance = await a_reconciler(cluster, mirror).glance_at(KEY, NOON)
    assert (glance is not None) == is_enough


class Fenced(Quiet):
    """An API server that can be written to, and not be read; its Finetune may have changed meanwhile."""

    def __init__(self, *, changed: bool = False) -> None:
        self.writes: list[str] = []
        self._changed = changed

    async def write_status(self, finetune: Finetune, status: FinetuneStatus) -> dict[str, Any]:
        if self._changed:
            raise Conflict("it has changed")
        self.writes.append("status")
        return _as_stored("6", status)

    async def record_event(self, body: dict[str, Any]) -> None:
        self.writes.append("Event")

    async def create(self, body: dict[str, Any]) -> dict[str, Any]:
        self.writes.append(body["kind"])
        return body | {"metadata": body["metadata"] | {"uid": "job-uid", "resourceVersion": "7"}}


def a_new_mirror() -> Mirror:
    """The mirror of a run that has only just been created."""
    mirror = Mirror([], lambda key: None)
    mirror.note(KEY, _as_stored("5", FinetuneStatus()))
    for children in (mirror._jobs[0], mirror._pods[0]):
        children.replace([])
    return mirror


async def test_a_new_run_gets_its_job_without_anything_being_read() -> None:
    mirror, cluster = a_new_mirror(), Fenced()
    await a_reconciler(cluster, mirror).reconcile(KEY)
    assert cluster.writes == ["status", "ConfigMap", "Job"]
    await a_reconciler(cluster, mirror).reconcile(KEY)
    assert cluster.writes.count("status") == 1, "that its Job is there is no news"


async def test_a_new_run_that_has_changed_meanwhile_gets_no_job() -> None:
    cluster = Fenced(changed=True)
    with pytest.raises(Conflict):
        await a_reconciler(cluster, a_new_mirror()).reconcile(KEY)
    assert cluster.writes == []


def test_only_the_very_first_attempt_is_started_unread() -> None:
    new, decision = a_finetune(**ON_CPU), Decision(FinetuneStatus(), start=FIRST_ATTEMPT)
    assert is_beginning(new, decision)
    assert not is_beginning(new, replace(decision, start=Attempt(Stage.PREPARE, 2)))
    assert not is_beginning(new, replace(decision, stop=(a_running_job(),)))
    begun = decide(new, Observed(), some_settings(), NOON).status
    assert not is_beginning(a_finetune(status=begun, **ON_CPU), decision)
