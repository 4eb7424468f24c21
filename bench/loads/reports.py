"""Many trainings that report their progress."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import aiohttp
from finetune_api import names
from finetune_api.names import Stage
from finetune_operator.api_server import ApiServer

from bench import fleet
from bench.loads.measured import Line, Size, p99
from tests.cluster.light import LightCluster

REPORT_SECONDS = 5.0
"""From one report of a training to its next."""

TRAIN_ON = frozenset({Stage.TRAIN})
"""Stages whose pods do not end."""


@dataclass
class Reporters:
    """Trainers that tell of a step every few seconds, with tokens of their pods."""

    api: ApiServer
    process: fleet.Process
    sent: dict[str, list[float]]
    """When each step was told, by the name of the Finetune."""
    answers: Counter[int]
    lags: list[float]
    """Seconds from a report to the status that has it, or a later one."""

    async def report(self, pods: dict[str, dict[str, Any]], seconds: float) -> None:
        """All of them, spread over the interval."""
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
            for number, (name, pod) in enumerate(sorted(pods.items())):
                wait = REPORT_SECONDS * number / len(pods)
                tasks.create_task(self._one(session, name, pod, wait, seconds))

    async def _one(
        self, session: aiohttp.ClientSession, name: str, pod: dict[str, Any], wait: float, seconds: float
    ) -> None:
        labels = pod["metadata"]["labels"]
        identity = {"namespace": fleet.NAMESPACE, "name": name, "uid": labels[names.LABEL_UID]}
        headers = {"Authorization": f"Bearer {await self._token(pod)}"}
        url, steps = f"http://127.0.0.1:{self.process.port}{names.REPORT_PATH}", self.sent.setdefault(name, [])
        await asyncio.sleep(wait)
        while len(steps) * REPORT_SECONDS < seconds:
            steps.append(time.monotonic())
            progress = {"percent": 1, "step": len(steps), "totalSteps": 10_000}
            body = {"identity": identity, "stage": "train", "attempt": 1, "activity": "training", "progress": progress}
            async with session.post(url, json=body, headers=headers) as answer:
                self.answers[answer.status] += 1
            await asyncio.sleep(max(0.0, steps[-1] + REPORT_SECONDS - time.monotonic()))

    async def _token(self, pod: dict[str, Any]) -> str:
        bound = {"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
        spec = {"audiences": [names.REPORT_AUDIENCE], "expirationSeconds": 3600, "boundObjectRef": bound}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{fleet.NAMESPACE}/serviceaccounts/default/token"
        return str((await self.api.request("POST", path, body=body))["status"]["token"])

    async def watch(self) -> None:
        """Each status that tells a later step ends the wait of all reports up to it."""
        _, version = await fleet.listed(self.api, fleet.FINETUNES)
        told: Counter[str] = Counter()
        async for change in self.api.watch(fleet.FINETUNES, "", version, 3600):
            name, status = change["object"]["metadata"]["name"], change["object"].get("status", {})
            step, now = status.get("progress", {}).get("step", 0), time.monotonic()
            self.lags += [now - at for at in self.sent.get(name, [])[told[name] : step]]
            told[name] = max(told[name], step)


async def reported(light: LightCluster, process: fleet.Process, size: Size) -> Line:
    """So many trainings that report."""
    async with fleet.connected(light) as api:
        await fleet.ready(process)
        player = fleet.Player(api, TRAIN_ON)
        async with fleet.in_background(player.play()):
            await fleet.in_parallel(lambda number: fleet.create(api, fleet.named(number)), range(size.running))

            async def all_train() -> bool:
                return (await fleet.phases(api))["Training"] == size.running

            await fleet.until(all_train)
            reporters = Reporters(api, process, {}, Counter(), [])
            before = process.metrics()["finetune_status_writes_total"]
            async with fleet.in_background(reporters.watch()):
                await asyncio.sleep(1)
                began = time.monotonic()
                await reporters.report(player.running, size.reporting_seconds)
                writes = (process.metrics()["finetune_status_writes_total"] - before) / (time.monotonic() - began)
                await asyncio.sleep(12)
    refused = sum(count for code, count in reporters.answers.items() if code >= 300)
    sent = sum(map(len, reporters.sent.values()))
    lag, lost = p99(reporters.lags), sent - len(reporters.lags)
    words = f"p99 {lag:.1f} s, {writes:.0f} writes/s, {refused} of {sent:,} refused, {lost} never shown"
    holds = lag < 12 and writes <= 60 and not refused and not lost
    return Line(
        f"{size.running} running, a report every {REPORT_SECONDS:.0f} s", "p99 < 12 s, 60 writes/s", words, holds
    )
