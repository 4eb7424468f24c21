"""kstatus itself, and a health check as Argo CD runs it, asked about a run in every state."""

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api import names
from finetune_api.names import Stage
from finetune_api.states import ARGO_HEALTH, KSTATUS, Verdict
from finetune_api.status import FinetuneStatus
from finetune_operator.decide import decide, refused
from finetune_operator.observed import Observed
from finetune_operator.verdict import Attempt
from hypothesis import given, settings

from tests.builders import NOON, a_body, a_failed_pod, a_failure_message, a_finetune, a_job, a_pod, a_report, a_result
from tests.builders import some_settings as settings_of_the_operator
from tests.judge import Judge
from tests.operator.deciding import COMPLETE, FAILED, PREPARED, RUNNING
from tests.operator.operator_process import ROOT
from tests.operator.test_decide_properties import SPECS, worlds

TRAINING = a_job(Stage.TRAIN, 1, RUNNING, a_pod(phase="Running", started_at=NOON))
TRAINED = a_job(Stage.TRAIN, 1, COMPLETE, a_pod(phase="Succeeded", message=a_result(Stage.TRAIN).to_message()))
LOST = a_job(Stage.PREPARE, 1, FAILED, a_failed_pod(exit_code=43))
PUBLISHING = a_report(Stage.TRAIN, activity="publishing", progress={"step": 9, "totalSteps": 9})
WAITING = a_job(Stage.PREPARE, 1, RUNNING, a_pod(waiting="Unschedulable: no node", scheduled=False))


def ended(message: str, code: int) -> Observed:
    return Observed(jobs=(a_job(Stage.PREPARE, 1, FAILED, a_failed_pod(message=message, exit_code=code)),))


WAYS: dict[str, tuple[list[Observed], dict[str, Any], Verdict]] = {
    "just seen": ([Observed()], {}, Verdict.WORKING),
    "without a node": ([Observed(), Observed(jobs=(WAITING,))], {}, Verdict.WORKING),
    "in a queue": (
        [Observed(), Observed(jobs=(replace(a_job(Stage.PREPARE), is_suspended=True),))], {"queue": {"name": "q"}},
        Verdict.WORKING,
    ),
    "waiting for its base": ([Observed()], {"model": {"finetuneRef": {"name": "base"}}}, Verdict.WORKING),
    "prepared": ([Observed(jobs=(PREPARED,))], {}, Verdict.WORKING),
    "training": ([Observed(jobs=(PREPARED,)), Observed(jobs=(PREPARED, TRAINING))], {}, Verdict.WORKING),
    "publishing": (
        [Observed(jobs=(PREPARED,)), Observed(jobs=(PREPARED, TRAINING), report=PUBLISHING)], {}, Verdict.WORKING,
    ),
    "about to try again": ([Observed(), Observed(jobs=(LOST,))], {}, Verdict.WORKING),
    "published": ([Observed(jobs=(PREPARED,)), Observed(jobs=(PREPARED, TRAINED))], {}, Verdict.SUCCEEDED),
    "wrong data": (
        [Observed(), ended(a_failure_message(Stage.PREPARE, "InvalidData", "RowInvalid"), 42)], {}, Verdict.FAILED,
    ),
    "forbidden code": ([Observed()], {"model": {"uri": "hf://a/b", "trustRemoteCode": True}}, Verdict.FAILED),
    "no retries left": ([Observed(), Observed(jobs=(LOST,))], {"retryLimit": 0}, Verdict.HELD),
    "not started in time": (
        [Observed(), *[Observed(jobs=(WAITING,))] * 4, Observed()], {"pendingDeadlineSeconds": 20}, Verdict.HELD,
    ),
    "trained for too long": (
        [Observed(jobs=(PREPARED,)), *[Observed(jobs=(PREPARED, TRAINING))] * 4, Observed(jobs=(PREPARED,))],
        {"activeDeadlineSeconds": 20}, Verdict.HELD,
    ),
    "suspended": ([Observed(jobs=(PREPARED,))], {"suspend": True}, Verdict.PAUSED),
    "on its way to suspended": (
        [Observed(jobs=(PREPARED,)), Observed(jobs=(PREPARED, TRAINING))], {"suspend": True}, Verdict.WORKING,
    ),
    "cancelled": ([Observed(jobs=(PREPARED,))], {"cancel": True}, Verdict.CANCELLED),
}  # fmt: skip
"""What was seen, pass by pass and ten seconds apart, with which spec, and how the run stands after it."""


def after(seen: list[Observed], spec: dict[str, Any]) -> FinetuneStatus:
    status = FinetuneStatus()
    for number, observed in enumerate(seen):
        now = NOON + timedelta(seconds=10 * number)
        status = decide(a_finetune(status=status, **spec), observed, settings_of_the_operator(), now).status
    return status


def an_object(status: FinetuneStatus | None, generation: int = 1) -> dict[str, Any]:
    """As the API server returns it."""
    body = a_body()
    body["metadata"]["generation"] = generation
    return body | {"status": status.to_json() if status else {"observedGeneration": -1}}


def test_kstatus_reads_every_state_as_the_documentation_says(judge: Judge) -> None:
    read = judge.kstatus([an_object(after(seen, spec)) for seen, spec, _ in WAYS.values()])
    assert dict(zip(WAYS, read, strict=True)) == {name: KSTATUS[verdict] for name, (*_, verdict) in WAYS.items()}
    assert {verdict for *_, verdict in WAYS.values()} == set(Verdict)


def test_argo_cd_shows_every_state_as_the_documentation_says(judge: Judge) -> None:
    [script] = re.findall(r"```lua\n(.*?)```", (ROOT / "docs" / "guide" / "gitops.md").read_text(), re.DOTALL)
    shown = judge.argo_health(script, [an_object(after(seen, spec)) for seen, spec, _ in WAYS.values()])
    expected = {name: ARGO_HEALTH[verdict] for name, (*_, verdict) in WAYS.items()}
    assert {name: answer["status"] for name, answer in zip(WAYS, shown, strict=True)} == expected
    assert all(answer["message"] for answer in shown)
    changed = [an_object(None), an_object(after(*WAYS["published"][:2]), generation=2)]
    assert [answer["status"] for answer in judge.argo_health(script, changed)] == ["Progressing"] * 2


def test_kstatus_waits_for_what_is_fresh_or_changed_or_refused_and_sees_what_is_deleted(judge: Judge) -> None:
    done = after(*WAYS["published"][:2])
    asked = a_finetune(status=after([Observed()], {}))
    full = refused(asked, Attempt(Stage.PREPARE, 1), "exceeded quota", for_good=False, now=NOON)
    gone = an_object(done)
    gone["metadata"] |= {"deletionTimestamp": "2026-01-01T12:00:00Z", "finalizers": [f"{names.GROUP}/cleanup"]}
    objects = [an_object(None), an_object(done, generation=2), an_object(full), gone]
    assert judge.kstatus(objects) == ["InProgress", "InProgress", "InProgress", "Terminating"]


@pytest.fixture(scope="module")
def statuses() -> list[FinetuneStatus]:
    """Some hundred statuses that `decide` comes to in worlds of chance."""
    found: list[FinetuneStatus] = []

    @settings(max_examples=150, database=None, derandomize=True)
    @given(worlds, worlds, SPECS)
    def look(first: Observed, second: Observed, spec: dict[str, Any]) -> None:
        found.append(after([first, second], spec))

    look()
    return found


def test_kstatus_agrees_in_worlds_of_chance(judge: Judge, statuses: list[FinetuneStatus]) -> None:
    expected = []
    for status in statuses:
        values = {condition.type: condition.status for condition in status.conditions}
        stalled, ready = values[names.ConditionType.STALLED], values[names.ConditionType.READY]
        expected.append("Failed" if stalled == "True" else "Current" if ready == "True" else "InProgress")
    assert judge.kstatus([an_object(status) for status in statuses]) == expected
    assert {"Failed", "InProgress"} <= set(expected)
