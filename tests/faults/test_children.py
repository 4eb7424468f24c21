"""What happens to pods and other children, by the cluster or by hand: each run ends as it should, with no Job twice.

All scenes are played at once, by two operators that both work: what one Lease prevents must do no harm either.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from finetune_api import names
from finetune_api.names import Stage

from tests.builders import a_body, a_failure_message
from tests.faults.api import MERGE
from tests.faults.conftest import Play
from tests.faults.kubelet import Ending, Script
from tests.faults.proxy import Plan
from tests.faults.scene import World, until

pytestmark = pytest.mark.api_server

NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
NO_IMAGE = 'Back-off pulling image "trainer:test"'
FIRST = ("train", 1)
STORY = "story"


@dataclass
class Scene:
    """A Finetune in a namespace of its own."""

    world: World
    namespace: str
    plan: Plan
    uid: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def status(self) -> dict[str, Any]:
        return dict((self.world.kubelet.finetune(self.namespace) or {}).get("status", {}))

    @property
    def message(self) -> str:
        conditions = {condition["type"]: condition["message"] for condition in self.status.get("conditions", [])}
        return str(conditions.get("Ready", ""))

    @property
    def jobs(self) -> list[str]:
        """The Jobs that were made, in order, foreign ones not among them."""
        made = [entry.name for entry in self.plan.ledger if entry.path.endswith("/jobs") and entry.status == 201]
        return [name.removeprefix(f"{STORY}-{self.uid[:8]}-") for name in made]

    def path(self, kind: str, name: str = "") -> str:
        root = {"jobs": "/apis/batch/v1", "finetunes": f"/apis/{names.API_VERSION}"}.get(kind, "/api/v1")
        return f"{root}/namespaces/{self.namespace}/{kind}" + (f"/{name}" if name else "")

    def child(self, end: str) -> str:
        return f"{STORY}-{self.uid[:8]}-{end}"

    async def runs(self, number: int = 1) -> None:
        """Wait until the train attempt runs."""

        def entry() -> Any:
            stages = self.status.get("stages", [])
            return next((stage for stage in stages if (stage["name"], stage["attempt"]) == ("train", number)), {})

        await until(lambda: entry().get("state") == "Running", 60)

    async def patch(self, kind: str, name: str, body: dict[str, Any]) -> None:
        status, answer = await self.world.api.ask("PATCH", self.path(kind, name), body, MERGE)
        assert status == 200, answer

    async def comes_to(self, phase: str) -> None:
        await until(lambda: self.status.get("phase") == phase, 60)


Deed = Callable[[Scene], Awaitable[None]]


async def nothing(_: Scene) -> None:
    """Nobody does anything."""


async def delete_train_job(scene: Scene) -> None:
    await scene.runs()
    await scene.world.api.ask("DELETE", scene.path("jobs", scene.child("train-1")), {"propagationPolicy": "Background"})


async def delete_run_file(scene: Scene) -> None:
    await scene.runs()
    await scene.world.api.ask("DELETE", scene.path("configmaps", scene.child("train-1")))
    await let_go(scene)


async def relabel_train_job(scene: Scene) -> None:
    """As if it belonged to another Finetune."""
    await scene.runs()
    labels = {names.LABEL_UID: "somebody", names.LABEL_NAME: "else", names.LABEL_ATTEMPT: "7"}
    await scene.patch("jobs", scene.child("train-1"), {"metadata": {"labels": labels}})
    await let_go(scene)


async def let_go(scene: Scene) -> None:
    """The pods may end now."""
    await scene.world.kubelet.play(scene.namespace, {})


async def change_deadline(scene: Scene) -> None:
    """Lowered once training waits: prepare, whose pod may be slow to start here, has the usual time."""
    await until(lambda: "train, attempt 1, is waiting to start: " in scene.message, 60)
    await scene.patch("finetunes", STORY, {"spec": {"pendingDeadlineSeconds": 2}})
    await scene.comes_to("Suspended")
    scene.notes.append(str(scene.status["failure"]["message"]))
    await scene.patch("finetunes", STORY, {"spec": {"pendingDeadlineSeconds": 600}})


async def make_way(scene: Scene) -> None:
    """Delete what is in the way, once the status says so."""
    await until(lambda: "belongs to somebody else" in scene.message, 60)
    scene.notes.append(scene.message)
    kind = "jobs" if " Job " in scene.message else "configmaps"
    body = await scene.world.api.get(scene.path(kind, scene.child("prepare-1")))
    assert "ownerReferences" not in body["metadata"], "it was adopted"
    await scene.world.api.ask("DELETE", scene.path(kind, scene.child("prepare-1")))


FOREIGN_JOB = {
    "suspend": True,
    "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}},
}


@dataclass(frozen=True)
class Case:
    """What happens, and what it comes to."""

    script: Script = field(default_factory=dict)
    deed: Deed = nothing
    foreign: str = ""
    """Kind of an object of somebody else that has the name of our first one."""
    phase: str = "Succeeded"
    jobs: tuple[str, ...] = ("prepare-1", "train-1", "train-2")
    status: dict[str, Any] = field(default_factory=dict)
    words: str = ""


STAYS: Script = {FIRST: Ending(stays=True)}
BAD_DATA = a_failure_message(Stage.TRAIN, "InvalidData", "ColumnMissing")
CASES: dict[str, Case] = {
    "oom-killed": Case({FIRST: Ending("", 137, "OOMKilled")}, status={"memoryRung": 1, "retries": 0}),
    "exit-42": Case({FIRST: Ending(BAD_DATA, 42, "Error")}, phase="Failed", jobs=("prepare-1", "train-1")),
    "exit-43": Case({FIRST: Ending("", 43, "Error")}, status={"retries": 1, "restarts": 0}),
    "exit-143": Case({FIRST: Ending("", 143, "Error")}, status={"retries": 0, "restarts": 1}),
    "unschedulable": Case(
        {FIRST: Ending(condition={"reason": "Unschedulable", "message": NO_NODE})}, change_deadline, words=NO_NODE
    ),
    "no-image": Case(
        {FIRST: Ending(waiting={"reason": "ImagePullBackOff", "message": NO_IMAGE})}, change_deadline, words=NO_IMAGE
    ),
    "job-deleted": Case(STAYS, delete_train_job, status={"retries": 0, "restarts": 1}),
    "run-file-deleted": Case(STAYS, delete_run_file, jobs=("prepare-1", "train-1")),
    "job-relabelled": Case(STAYS, relabel_train_job),
    "foreign-job": Case(deed=make_way, foreign="jobs", jobs=("prepare-1", "train-1"), words="Job story-"),
    "foreign-config-map": Case(
        deed=make_way, foreign="configmaps", jobs=("prepare-1", "train-1"), words="ConfigMap story-"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes(play: Play[dict[str, Scene]]) -> dict[str, Scene]:
    return play(_all_scenes)


async def _all_scenes(world: World) -> dict[str, Scene]:
    scenes = {name: await _set_up(world, name, case) for name, case in CASES.items()}
    namespaces = [scene.namespace for scene in scenes.values()]
    for number in (1, 2):
        lease = {"leaseNamespace": namespaces[0], "leaseName": f"operator-{number}"}
        world.nursery.start(f"children-{number}", namespaces=namespaces, retryWaitSeconds=1, **lease)

    async def played(name: str, scene: Scene) -> None:
        try:
            await CASES[name].deed(scene)
            await scene.comes_to(CASES[name].phase)
        except TimeoutError:
            scene.notes.append("it did not come to its end")

    await asyncio.gather(*(played(name, scene) for name, scene in scenes.items()))
    return scenes


async def _set_up(world: World, name: str, case: Case) -> Scene:
    """A Finetune, and what is in its way, before any operator looks at it."""
    scene = Scene(world, f"child-{name}", Plan())
    await world.api.make("/api/v1/namespaces", {"metadata": {"name": scene.namespace}})
    await world.api.make(scene.path("serviceaccounts"), {"metadata": {"name": "default"}})
    world.proxy.plans[scene.namespace] = scene.plan
    world.kubelet.scripts[scene.namespace] = case.script
    made = await world.api.make(scene.path("finetunes"), a_body(STORY, scene.namespace))
    scene.uid = made["metadata"]["uid"]
    if case.foreign:
        body: dict[str, Any] = {"metadata": {"name": scene.child("prepare-1")}}
        await world.api.make(scene.path(case.foreign), body | ({"spec": FOREIGN_JOB} if case.foreign == "jobs" else {}))
    return scene


@pytest.mark.parametrize("name", CASES)
def test_a_run_ends_as_it_should_whatever_becomes_of_its_children(scenes: dict[str, Scene], name: str) -> None:
    scene, case = scenes[name], CASES[name]
    assert scene.status.get("phase") == case.phase, scene.status
    assert scene.jobs == list(case.jobs), "a Job was made twice, or never"
    assert {key: scene.status[key] for key in case.status} == case.status
    assert case.words in "".join(scene.notes)
