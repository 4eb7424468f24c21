"""What a pass may conclude from what the watches have told, and what it must read first."""

from typing import Any, cast

import pytest
from finetune_api.names import Stage
from finetune_operator.cluster import Cluster, Key
from finetune_operator.decide import decide
from finetune_operator.mirror import Mirror
from finetune_operator.observed import JobState, Observed
from finetune_operator.reconcile import glance_at
from finetune_operator.reports import ReportBook

from tests.builders import NOON, a_body, a_finetune, a_job, a_pod, a_result, some_settings
from tests.operator.test_mirror import a_child

PREPARED = a_job(Stage.PREPARE, 1, JobState.COMPLETE, a_pod(message=a_result(Stage.PREPARE).to_message()))
ON_CPU: dict[str, Any] = {"trainer": {"gpusPerNode": 0}}


class Quiet:
    """An API server that nobody has to ask."""

    async def with_trouble(self, observed: Observed, _: str) -> Observed:
        return observed


def a_mirror(*jobs: dict[str, Any]) -> Mirror:
    """The mirror of a run that trains; it has been told of no pod."""
    status, settings = None, some_settings()
    for seen in (Observed(), Observed(jobs=(PREPARED,)), Observed(jobs=(PREPARED, a_running_job()))):
        status = decide(a_finetune(status=status, **ON_CPU), seen, settings, NOON).status
    assert status is not None
    mirror, body = Mirror([], lambda key: None), a_body("run", **ON_CPU) | {"status": status.to_json()}
    body["metadata"] |= {"uid": "run-uid", "resourceVersion": "5"}
    mirror.note(Key("team-a", "run"), body)
    mirror._jobs[0].replace(jobs)
    mirror._pods[0].replace([])
    return mirror


def a_running_job() -> Any:
    return a_job(Stage.TRAIN, 1, JobState.RUNNING, a_pod(phase="Running", started_at=NOON))


FAILED = {"type": "Failed", "status": "True", "lastTransitionTime": "2026-01-01T12:01:00Z"}


@pytest.mark.parametrize(("conditions", "is_enough"), [([], True), ([FAILED], False)], ids=["runs", "has-failed"])
async def test_why_an_attempt_failed_is_concluded_from_nothing_but_what_is_read_then(
    conditions: list[dict[str, str]], is_enough: bool
) -> None:
    """The watch of pods may be behind that of Jobs: what looks like a lost pod may have named a wrong row."""
    mirror, cluster = a_mirror(a_child("a", 6, conditions=conditions)), cast(Cluster, Quiet())
    glance = await glance_at(Key("team-a", "run"), cluster, mirror, ReportBook(), some_settings(), NOON)
    assert (glance is not None) == is_enough
