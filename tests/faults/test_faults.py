"""Under every fault a Finetune ends as without it: the same status, one Job for each attempt, no orphan.

Each scene is a namespace with a Finetune, a proxy's plan, and operators that are real processes; the kills are real
SIGKILLs. A scene goes from the creation of the Finetune until it and its files are gone, and all are played at once.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.conftest import Play
from tests.faults.plans import (
    Away,
    Conflicting,
    CutShort,
    Deaf,
    Expired,
    Failing,
    Forgetful,
    Frozen,
    Killed,
    Stammering,
    Throttled,
)
from tests.faults.proxy import Plan
from tests.faults.scene import Outcome, Scene, World

pytestmark = pytest.mark.api_server

STATUSES, OTHERS = 5, 17
"""API writes of the straight way: of the status, on a busy machine perhaps one more, and all others. A change of the
operator that adds one is to change these numbers."""

AT_ONCE = 16
"""Scenes that are played at the same time; most of them wait until the Lease of a dead operator has run out."""

BAR_SECONDS = 90
"""How long after the end of its fault a run may take to its own end."""

SPEC: dict[str, Any] = {"output": {"uri": "s3://out/models", "deletionPolicy": "Delete"}}

KILLS = range(1, STATUSES + OTHERS + 1)
"""Before which write the operator is killed. That is after the one before: nothing is left of it but what it wrote."""

FAULTS: dict[str, Callable[[], Plan]] = {
    "gone-60-s": lambda: Away(9, 60),
    "gone-1-s": lambda: Away(9, 1),
    "every-third-request-500": lambda: Failing(0.3, seed=5),
    "429-with-retry-after": lambda: Throttled(9, 7, retry_after=3),
    "answers-cut-short": CutShort,
    "conflict-on-every-status": lambda: Conflicting(3),
    "watch-410": lambda: Expired(3, by_event=False),
    "watch-410-as-event": lambda: Expired(3, by_event=True),
    "watch-error": lambda: Expired(1, by_event=True, code=500),
    "two-operators-at-once": Plan,
    "asleep-before-a-status": lambda: Frozen("PATCH", "/status", 20),
    "asleep-before-a-job": lambda: Frozen("POST", "/jobs", 20),
    "asleep-before-a-deletion": lambda: Frozen("DELETE", "/jobs/", 20),
    "watch-silent": Deaf,
    "watch-doubled": Stammering,
    "watch-lossy": Forgetful,
}
OPERATORS = {"two-operators-at-once": 2}
"""Where more than one works, each with a Lease of its own: what the Lease prevents must do no harm either."""
RESYNC = {"watch-silent": 5, "watch-lossy": 5}
"""Where only the resync helps, it comes every 5 s in place of 60."""


@pytest.fixture(scope="module")
def scenes(play: Play[dict[str, Scene]]) -> dict[str, Scene]:
    """Every scene, played."""
    return play(_all_scenes)


async def _all_scenes(world: World) -> dict[str, Scene]:
    plans = {name: make() for name, make in FAULTS.items()} | {"straight": Plan()}
    plans |= {f"killed-{number}": Killed(number) for number in KILLS}
    scenes = [
        Scene(world, name, plan, OPERATORS.get(name, 1), resyncSeconds=RESYNC.get(name, 60))
        for name, plan in plans.items()
    ]
    gate = asyncio.Semaphore(AT_ONCE)

    async def played(scene: Scene) -> None:
        async with gate:
            try:
                await scene.play({}, **SPEC)
            except (AssertionError, TimeoutError) as error:
                scene.trouble = f"{type(error).__name__} {error}"

    await asyncio.gather(*(played(scene) for scene in scenes))
    return {scene.name: scene for scene in scenes}


def compare(scene: Scene, straight: Outcome) -> None:
    """The scene has come to what the straight way comes to."""
    outcome = scene.outcome
    assert scene.trouble is None
    assert outcome.status == straight.status
    assert outcome.jobs == straight.jobs, "a Job was made twice, or never"
    assert outcome.unowned == []
    assert outcome.left == []
    assert set(outcome.events) <= set(straight.events)
    assert len(outcome.events) == len(set(outcome.events)), "an Event was told twice"
    assert outcome.seconds < BAR_SECONDS


def test_the_straight_way_has_as_many_writes_as_are_killed_at(scenes: dict[str, Scene]) -> None:
    straight = scenes["straight"]
    assert straight.outcome.status["phase"] == "Succeeded"
    assert straight.outcome.jobs == ["prepare-1", "train-1", "cleanup"]
    statuses = [entry for entry in straight.plan.ledger if entry.path.endswith("/status")]
    assert len(statuses) >= STATUSES
    assert len(straight.plan.ledger) - len(statuses) == OTHERS


@pytest.mark.parametrize("number", KILLS)
def test_an_operator_killed_at_any_write_is_followed_by_one_that_finishes_its_work(
    scenes: dict[str, Scene], number: int
) -> None:
    scene = scenes[f"killed-{number}"]
    assert scene.outcome.starts == 2
    compare(scene, scenes["straight"].outcome)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_between_operator_and_api_server_changes_nothing_in_the_end(
    scenes: dict[str, Scene], name: str
) -> None:
    compare(scenes[name], scenes["straight"].outcome)


def test_an_api_server_that_asks_to_be_left_alone_is(scenes: dict[str, Scene]) -> None:
    plan = scenes["429-with-retry-after"].plan
    assert isinstance(plan, Throttled)
    assert plan.refused > 1
    assert plan.too_early == []
