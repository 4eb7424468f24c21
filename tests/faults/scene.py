"""A scene: one Finetune in a namespace of its own, its operator under a fault, from its creation until it is gone."""

import asyncio
import json
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from finetune_api import names

from tests.builders import a_body
from tests.faults.api import Api
from tests.faults.kubelet import STANDSTILL, Kubelet, Script
from tests.faults.nursery import Nursery, OperatorProcess
from tests.faults.plans import Frozen, Killed
from tests.faults.proxy import Plan, Proxy

OVER = ("Succeeded", "Failed", "Cancelled", "Suspended")
TIMES = re.compile(r'"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z"')
CHILDREN = {"jobs": "/apis/batch/v1", "pods": "/api/v1", "configmaps": "/api/v1", "services": "/api/v1"}
NAME = "story"
LAST_WORDS_SECONDS = 1
"""How long after its Finetune an operator may go on: the last Event is told of one that is gone."""
GARBAGE_LOOKS = 30
"""Looks, a second apart, at what the garbage collector has yet to remove."""


@dataclass
class World:
    """What all scenes share."""

    api: Api
    proxy: Proxy
    kubelet: Kubelet
    nursery: Nursery


@dataclass
class Outcome:
    """What a scene came to."""

    status: dict[str, Any] = field(default_factory=dict)
    """The status at its end, without times, uids and the namespace."""
    jobs: list[str] = field(default_factory=list)
    """The Jobs that were made, by the ends of their names, in order."""
    events: list[str] = field(default_factory=list)
    """Reasons of the Events."""
    unowned: list[str] = field(default_factory=list)
    """Children that nobody owns."""
    left: list[str] = field(default_factory=list)
    """What is there once the Finetune has gone."""
    seconds: float = 0.0
    """From the end of the fault until the Finetune was gone."""
    starts: int = 0
    """Operators that were started."""


class Scene:
    """Plays one plan in one namespace."""

    def __init__(self, world: World, name: str, plan: Plan, operators: int = 1, **settings: Any) -> None:
        """Several `operators` have a Lease each, so that all of them work at once."""
        self.world, self.name, self.plan = world, name, plan
        self.namespace = f"scene-{name}"
        self.settings = {"resyncSeconds": 60, "retryWaitSeconds": 1} | settings
        self.outcome = Outcome()
        self.trouble: str | None = None
        """What kept it from being played to its end."""
        self._operators = operators
        self._running: list[OperatorProcess] = []
        self._keepers: list[asyncio.Task[None]] = []
        if isinstance(plan, Killed):
            plan.kill = self.kill
        if isinstance(plan, Frozen):
            plan.freeze, plan.thaw = self._freeze, self._thaw

    async def play(self, script: Script, **spec: Any) -> Outcome:
        """The whole story."""
        await self._set_up(script)
        for number in range(self._operators):
            self._start(f"operator-{number}")
        try:
            await self._tell(spec)
        finally:
            for keeper in self._keepers:
                keeper.cancel()
            self.kill()
        return self.outcome

    def kill(self) -> None:
        """SIGKILL for every operator of the scene."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for operator in self._running:
            operator.send(number)

    async def _freeze(self) -> None:
        """Stop every operator, and start another one that is to take over the Lease; pods run on meanwhile."""
        self._send(signal.SIGSTOP)
        await self.world.kubelet.play(self.namespace, STANDSTILL)
        self._start("operator-0")

    async def _thaw(self) -> None:
        self._send(signal.SIGCONT)
        await self.world.kubelet.play(self.namespace, {})

    def _start(self, lease: str) -> None:
        self._keepers.append(asyncio.create_task(self._keep(lease)))

    async def _set_up(self, script: Script) -> None:
        api = self.world.api
        await api.make("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        account = {"metadata": {"name": "default"}}
        await api.make(f"/api/v1/namespaces/{self.namespace}/serviceaccounts", account)
        self.world.kubelet.scripts[self.namespace] = script
        self.world.proxy.plans[self.namespace] = self.plan
        self.plan.ended_at = time.monotonic()

    async def _keep(self, lease: str) -> None:
        """What a Deployment does: an operator that has ended is followed by the next."""
        settings = {"leaseNamespace": self.namespace, "leaseName": lease, **self.settings}
        while True:
            self.outcome.starts += 1
            name = f"{self.name}-{self.outcome.starts}"
            operator = self.world.nursery.start(name, namespaces=[self.namespace], **settings)
            self._running.append(operator)
            await ended(operator)
            self._running.remove(operator)

    async def _tell(self, spec: dict[str, Any]) -> None:
        api, outcome = self.world.api, self.outcome
        finetunes = f"/apis/{names.API_VERSION}/namespaces/{self.namespace}/{names.PLURAL}"
        made = await api.make(finetunes, a_body(NAME, self.namespace, **spec))
        path, uid = f"{finetunes}/{NAME}", made["metadata"]["uid"]

        def seen() -> dict[str, Any] | None:
            return self.world.kubelet.finetune(self.namespace)

        await until(lambda: (seen() or {}).get("status", {}).get("phase") in OVER)
        outcome.status = self._comparable((await api.get(path))["status"], uid)
        outcome.unowned = [f"{kind}/{child['metadata']['name']}" for kind, child in await self._children(uid)
                           if not child["metadata"].get("ownerReferences")]  # fmt: skip
        await api.ask("DELETE", path)
        await until(lambda: not seen())
        outcome.seconds = time.monotonic() - self.plan.ended_at
        await asyncio.sleep(LAST_WORDS_SECONDS)
        outcome.left = await self._remains(uid)
        outcome.jobs = [entry.name.removeprefix(f"{NAME}-{uid[:8]}-") for entry in self.plan.ledger
                        if entry.path.endswith("/jobs") and entry.status == 201]  # fmt: skip
        events = await api.list(f"/api/v1/namespaces/{self.namespace}/events?fieldSelector=involvedObject.uid={uid}")
        outcome.events = sorted(event["reason"] for event in events)

    async def _children(self, uid: str) -> list[tuple[str, dict[str, Any]]]:
        selector = f"labelSelector={names.LABEL_NAME}={NAME}"
        return [
            (kind, body)
            for kind, root in CHILDREN.items()
            for body in await self.world.api.list(f"{root}/namespaces/{self.namespace}/{kind}?{selector}")
        ]

    async def _remains(self, uid: str) -> list[str]:
        """Children that are still there after a while, but for the cleanup Job, which goes by its own time."""
        found: list[str] = []
        for _ in range(GARBAGE_LOOKS):
            found = [f"{kind}/{body['metadata']['name']}" for kind, body in await self._children(uid)
                     if names.LABEL_CLEANUP_OF not in body["metadata"]["labels"]]  # fmt: skip
            if not found:
                break
            await asyncio.sleep(1)
        return found

    def _comparable(self, status: dict[str, Any], uid: str) -> dict[str, Any]:
        status = {key: value for key, value in status.items() if key != "activeSeconds"}
        text = TIMES.sub('"TIME"', json.dumps(status, sort_keys=True))
        return dict(json.loads(text.replace(uid, "UID").replace(uid[:8], "UID").replace(self.namespace, "NAMESPACE")))


async def ended(operator: OperatorProcess) -> None:
    """Wait until the process has ended."""
    loop, has_ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(operator.handle, has_ended.set)
    try:
        await has_ended.wait()
    finally:
        loop.remove_reader(operator.handle)


async def until(probe: Callable[[], bool], seconds: float = 180) -> None:
    """Wait until it is true."""
    async with asyncio.timeout(seconds):
        while not probe():
            await asyncio.sleep(0.1)
