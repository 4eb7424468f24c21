"""A kubelet for all scenes: each pod runs, and ends as its scene wants it to.

A pod moves on only once the status tells of its last move, so that every run writes the same statuses one by one.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_api import names
from finetune_api.names import Stage
from finetune_api.run import CleanupResult

from tests.builders import a_result
from tests.faults.api import MERGE, Api

FINETUNES = f"/apis/{names.API_VERSION}/{names.PLURAL}"
Body = dict[str, Any]


@dataclass(frozen=True)
class Ending:
    """How the pods of an attempt end; one that `stays` never does, one that waits never starts."""

    message: str = ""
    code: int = 0
    reason: str = "Completed"
    condition: Mapping[str, str] | None = None
    waiting: Mapping[str, str] | None = None
    stays: bool = False


WELL = {stage: Ending(a_result(stage).to_message()) for stage in Stage}
GONE_WELL = Ending(CleanupResult(removed=12).to_message())
Script = Mapping[tuple[str, int], Ending]
"""How attempts end that do not end well, by stage and number."""
STANDSTILL: Script = {(stage.value, 1): Ending(stays=True) for stage in Stage}


class Kubelet:
    """Plays the nodes of these namespaces, each of which has one Finetune, until it is cancelled."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.scripts: dict[str, Script] = {}
        """What the pods of each namespace do."""
        self.finetunes: dict[str, Body] = {}
        self._pods: dict[str, Body] = {}
        self._moved: dict[str, str] = {}
        """The last move of each pod, by uid."""

    async def run(self) -> None:
        """Move every pod that may move, whenever it or its Finetune has changed."""
        pods = f"/api/v1/pods?labelSelector={names.MANAGED_BY_LABEL}={names.FIELD_MANAGER}&"
        await asyncio.gather(self._follow(f"{FINETUNES}?", self.finetunes), self._follow(pods, self._pods))

    async def _follow(self, path: str, known: dict[str, Body]) -> None:
        """Keep what is known of these objects up to date, by uid."""
        async for kind, body in self._api.watch(path):
            uid, namespace = body["metadata"]["uid"], body["metadata"]["namespace"]
            if kind == "DELETED":
                known.pop(uid, None)
            else:
                known[uid] = body
            await self._move_all(namespace)

    async def play(self, namespace: str, script: Script) -> None:
        """From now on the pods of a namespace do what this script says."""
        self.scripts[namespace] = script
        await self._move_all(namespace)

    async def _move_all(self, namespace: str) -> None:
        if (script := self.scripts.get(namespace)) is not None:
            for pod in [pod for pod in self._pods.values() if pod["metadata"]["namespace"] == namespace]:
                await self._move(pod, script)

    def finetune(self, namespace: str) -> Body | None:
        """The Finetune of a namespace, as it was seen last."""
        return next((body for body in self.finetunes.values() if body["metadata"]["namespace"] == namespace), None)

    async def _move(self, pod: Body, script: Script) -> None:
        meta, labels = pod["metadata"], pod["metadata"]["labels"]
        stage = labels.get(names.LABEL_STAGE)
        if stage is None:
            return await self._write(pod, "ended", ended(GONE_WELL))
        number = int(labels[names.LABEL_ATTEMPT])
        told = _told((self.finetune(meta["namespace"]) or {}).get("status", {}), stage, number)
        ending = script.get((stage, number), WELL[Stage(stage)])
        if ending.waiting or ending.condition:
            return await self._write(pod, "stuck", stuck(ending))
        if told == "Pending":
            return await self._write(pod, "started", started())
        if told == "Running" and not ending.stays:
            return await self._write(pod, "ended", ended(ending))
        return None

    async def _write(self, pod: Body, move: str, status: dict[str, Any]) -> None:
        meta = pod["metadata"]
        if self._moved.get(meta["uid"]) == move:
            return
        self._moved[meta["uid"]] = move
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
        code, answer = await self._api.ask("PATCH", path, {"status": status}, MERGE)
        assert code in (200, 404), answer


def _told(status: dict[str, Any], stage: str, number: int) -> str | None:
    """What the status says of the attempt."""
    entries = (entry for entry in status.get("stages", []) if (entry["name"], entry["attempt"]) == (stage, number))
    return next((str(entry["state"]) for entry in entries), None)


def started() -> dict[str, Any]:
    """The status of a pod that runs."""
    return {"phase": "Running", "containerStatuses": [_container({"running": {"startedAt": _now()}}, ready=True)]}


def ended(ending: Ending) -> dict[str, Any]:
    """The status of a pod that has ended."""
    times = {"startedAt": _now(), "finishedAt": _now()}
    state = {"exitCode": ending.code, "message": ending.message, "reason": ending.reason, **times}
    phase = "Failed" if ending.code else "Succeeded"
    return {"phase": phase, "containerStatuses": [_container({"terminated": state}, ready=False)]}


def stuck(ending: Ending) -> dict[str, Any]:
    """The status of a pod that does not start."""
    status: dict[str, Any] = {"phase": "Pending"}
    if ending.condition:
        status["conditions"] = [{"type": "PodScheduled", "status": "False", **ending.condition}]
    if ending.waiting:
        status["containerStatuses"] = [_container({"waiting": dict(ending.waiting)}, ready=False)]
    return status


def _container(state: dict[str, Any], *, ready: bool) -> dict[str, Any]:
    about = {"name": names.TRAINER_CONTAINER, "image": "trainer", "imageID": "", "restartCount": 0}
    return {**about, "ready": ready, "state": state}


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
