"""The operator under load: thousands of Finetunes on a real API server, on this machine.

    python -m bench.operator [--quick] [LOAD ...]

Each load has a bar; the first is measured against a bare loop that makes the same writes to the same kind of API server
in the same run, and the last line is that ratio. `--quick` takes a tenth of everything and proves the script.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import mean, quantiles
from typing import Any

import aiohttp
from finetune_api import names
from finetune_api.names import Stage
from finetune_api.resource import parse_finetune
from finetune_operator.api_server import MERGE_PATCH, ApiServer
from finetune_operator.cluster import Cluster, Key
from finetune_operator.decide import decide
from finetune_operator.manifests import attempt_manifests
from finetune_operator.observed import Observed
from finetune_operator.settings import Settings

from bench.fleet import (
    AT_ONCE,
    FINETUNES,
    JOBS,
    NAMESPACE,
    PODS,
    Player,
    Process,
    Sightings,
    apply_status,
    connected,
    create,
    fresh_cluster,
    in_background,
    in_parallel,
    named,
    operator,
    phases,
    ready,
    until,
)
from bench.machine import machine
from bench.record import RESULTS, machine_words
from tests.cluster.light import LightCluster

SETTINGS = Settings(trainer_image="trainer:test", report_url="http://127.0.0.1:1")
REPORT_SECONDS = 5.0
TRAIN_ON = frozenset({Stage.TRAIN})
TARGET = 0.75


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    burst: int = 1000
    rounds: int = 5
    lives: int = 200
    idle: int = 1000
    idle_seconds: int = 70
    present: int = 5000
    running: int = 500
    reporting_seconds: int = 60
    others: int = 100
    changes_a_second: int = 50
    soak_seconds: int = 120


QUICK = Size(100, 1, 20, 100, 65, 500, 50, 20, 30, 50, 30)


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    load: str
    bar: str
    measured: str
    holds: bool


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return quantiles(values, n=100)[98] if len(values) > 1 else values[0]


# --- created at once ------------------------------------------------------------------------------------------------


async def burst(light: LightCluster, process: Process, count: int) -> tuple[float, list[float]]:
    """Finetunes a second that got their Job, and how long each of them waited for it, in seconds."""
    sent: dict[str, float] = {}

    async def send(number: int) -> None:
        sent[named(number)] = time.monotonic()
        await create(api, named(number))

    async with connected(light) as api:
        await ready(process)
        seen = Sightings()
        async with in_background(seen.watch(api)):
            await asyncio.sleep(1)
            began = time.monotonic()
            await in_parallel(send, range(count))
            await seen.of(sent)
    waits = [seen.at[name] - at for name, at in sent.items()]
    return count / (max(seen.at.values()) - began), waits


async def bare(light: LightCluster, count: int) -> float:
    """The same writes a second, in a loop that neither watches nor decides."""

    async def write(number: int) -> None:
        finetune = parse_finetune(await create(api, named(number)))
        decision = decide(finetune, Observed(), SETTINGS, datetime.now(UTC).replace(microsecond=0))
        await cluster.write_status(finetune, decision.status)
        for manifest in attempt_manifests(finetune, Stage.PREPARE, 1, SETTINGS):
            await cluster.create(manifest)

    async with connected(light) as api:
        cluster, began = Cluster(api), time.monotonic()
        await in_parallel(write, range(count))
        return count / (time.monotonic() - began)


def created_at_once(size: Size) -> tuple[list[Line], float]:
    """Rounds that take turns, each with an API server of its own."""
    ours, theirs, waits = [], [], list[float]()
    for number in range(size.rounds):
        with fresh_cluster() as light:
            theirs.append(asyncio.run(bare(light, size.burst)))
        with fresh_cluster() as light, operator(light) as process:
            rate, waited = asyncio.run(burst(light, process, size.burst))
            ours.append(rate)
            waits += waited
        print(f"round {number + 1}: bare {theirs[-1]:.0f}/s, operator {ours[-1]:.0f}/s", flush=True)
    ratio = mean(ours) / mean(theirs)
    words = f"{mean(ours):.0f}/s, bare {mean(theirs):.0f}/s: {ratio:.2f} x; p99 {p99(waits):.1f} s"
    return [Line(f"{size.burst:,} created at once", f"{TARGET} x bare", words, ratio >= TARGET)], ratio


# --- whole lives ----------------------------------------------------------------------------------------------------


async def lives(light: LightCluster, process: Process, count: int) -> tuple[Counter[str], dict[str, Any]]:
    """Requests of so many whole lives, by verb, and the status that one has come to."""
    async with connected(light) as api:
        await ready(process)
        async with in_background(Player(api).play()):
            before = process.requests()
            await in_parallel(lambda number: create(api, named(number)), range(count))

            async def all_succeeded() -> bool:
                return (await phases(api))["Succeeded"] == count

            await until(all_succeeded)
            found = process.requests() - before
        body = await Cluster(api).get_finetune_body(_key(named(0)))
        assert body is not None
        return found, body["status"]


def requests_of_a_life(size: Size) -> tuple[list[Line], dict[str, Any]]:
    """From creation to Succeeded, over prepare and train, with nobody who reports progress."""
    with fresh_cluster() as light, operator(light) as process:
        found, status = asyncio.run(lives(light, process, size.lives))
    each = sum(found.values()) / size.lives
    words = ", ".join(f"{verb} {number / size.lives:.1f}" for verb, number in sorted(found.items()))
    return [Line(f"{size.lives} whole lives", "25 requests each", f"{each:.1f} each ({words})", each <= 25)], status


# --- many that are over ---------------------------------------------------------------------------------------------


async def finished(light: LightCluster, numbers: range, status: dict[str, Any]) -> None:
    """Finetunes that are over, made while no operator looks."""

    async def make(number: int) -> None:
        await create(api, named(number))
        await apply_status(api, named(number), status)

    async with connected(light) as api:
        await in_parallel(make, numbers)


async def cold_start(light: LightCluster, process: Process, count: int, began: float) -> float:
    """Seconds from the operator's start until it has looked at all, and has made the Job of one that is new."""
    async with connected(light) as api:
        seen = Sightings()
        async with in_background(seen.watch(api)):
            await asyncio.sleep(0.5)
            await create(api, f"new-beside-{count}")
            await ready(process)
            await seen.of([f"new-beside-{count}"])

            async def caught_up() -> bool:
                now = process.metrics()
                return now['finetune_reconciles_total{outcome="ok"}'] >= count and now["finetune_queue_length"] == 0

            await until(caught_up)
    return time.monotonic() - began


def idle(process: Process, seconds: float) -> tuple[Counter[str], float]:
    """Requests meanwhile, by verb, and the share of a core that was used."""
    before, cpu = process.requests(), process.cpu_seconds
    time.sleep(seconds)
    return process.requests() - before, (process.cpu_seconds - cpu) / seconds


def over_and_cold(size: Size, status: dict[str, Any]) -> list[Line]:
    """A thousand that are over cost nothing; thousands are taken in quickly when the operator starts."""
    with fresh_cluster() as light:
        asyncio.run(finished(light, range(size.idle), status))
        with operator(light) as process:
            asyncio.run(cold_start(light, process, size.idle, time.monotonic()))
            asked, share = idle(process, size.idle_seconds)
        asyncio.run(finished(light, range(size.idle, size.present), status))
        began = time.monotonic()
        with operator(light) as process:
            seconds = asyncio.run(cold_start(light, process, size.present, began))
            memory = process.resident_bytes / 2**20
    writes = asked["PATCH"] + asked["POST"] + asked["DELETE"]
    words = f"{writes} writes but the Lease's, {asked['GET']} reads in {size.idle_seconds} s, {share:.1%} of a core"
    return [
        Line(f"{size.idle:,} over", "no write, < 5 % of a core", words, not writes and share < 0.05),
        Line(
            f"{size.present:,} present, cold start",
            "< 60 s, < 250 MiB",
            f"{seconds:.1f} s, {memory:.0f} MiB",
            seconds < 60 and memory < 250,
        ),
    ]


# --- many that report -----------------------------------------------------------------------------------------------


@dataclass
class Reporters:
    """Trainers that tell of a step every few seconds, with tokens of their pods."""

    api: ApiServer
    process: Process
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
        identity = {"namespace": NAMESPACE, "name": name, "uid": labels[names.LABEL_UID]}
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
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default/token"
        return str((await self.api.request("POST", path, body=body))["status"]["token"])

    async def watch(self) -> None:
        """Each status that tells a later step ends the wait of all reports up to it."""
        _, version = await self.api.list_with_version(FINETUNES)
        told: Counter[str] = Counter()
        async for change in self.api.watch(FINETUNES, "", version, 3600):
            name, status = change["object"]["metadata"]["name"], change["object"].get("status", {})
            step, now = status.get("progress", {}).get("step", 0), time.monotonic()
            self.lags += [now - at for at in self.sent.get(name, [])[told[name] : step]]
            told[name] = max(told[name], step)


async def reported(light: LightCluster, process: Process, size: Size) -> Line:
    """So many trainings that report."""
    async with connected(light) as api:
        await ready(process)
        player = Player(api, TRAIN_ON)
        async with in_background(player.play()):
            await in_parallel(lambda number: create(api, named(number)), range(size.running))

            async def all_train() -> bool:
                return (await phases(api))["Training"] == size.running

            await until(all_train)
            reporters = Reporters(api, process, {}, Counter(), [])
            before = process.metrics()["finetune_status_writes_total"]
            async with in_background(reporters.watch()):
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


# --- one that is changed all the time -------------------------------------------------------------------------------


async def neighbours(light: LightCluster, process: Process, size: Size) -> Line:
    """How long others wait for their Job, alone and beside one that is changed many times a second."""

    async def waits(api: ApiServer, prefix: str) -> list[float]:
        seen, sent = Sightings(), dict[str, float]()
        async with in_background(seen.watch(api)):
            await asyncio.sleep(1)
            for number in range(size.others):
                name = f"{prefix}-{number}"
                sent[name] = time.monotonic()
                await create(api, name)
                await asyncio.sleep(0.1)
            await seen.of(sent)
        return [seen.at[name] - at for name, at in sent.items()]

    async def change(api: ApiServer) -> None:
        number = 0
        while True:
            number += 1
            body = {"metadata": {"annotations": {"changed": str(number)}}}
            await api.request("PATCH", f"{FINETUNES}/noisy", body=body, content_type=MERGE_PATCH)
            await asyncio.sleep(1 / size.changes_a_second)

    async with connected(light) as api:
        await ready(process)
        await create(api, "noisy")
        alone = await waits(api, "alone")
        async with in_background(change(api)):
            beside = await waits(api, "beside")
    words = f"p99 {p99(beside) * 1000:.0f} ms beside it, {p99(alone) * 1000:.0f} ms alone"
    return Line(f"one changed {size.changes_a_second} times a second", "others' p99 unchanged", words,
                p99(beside) < 2 * p99(alone) + 0.05)  # fmt: skip


# --- hours ----------------------------------------------------------------------------------------------------------


async def soak(light: LightCluster, process: Process, size: Size) -> Line:
    """One created, finished and deleted each second."""

    async def one(api: ApiServer, name: str) -> None:
        await create(api, name)

        async def is_over() -> bool:
            body = await api.request("GET", f"{FINETUNES}/{name}")
            return bool(body.get("status", {}).get("phase") == "Succeeded")

        await until(is_over)
        await api.request("DELETE", f"{FINETUNES}/{name}", body={"propagationPolicy": "Background"})

    async with connected(light) as api:
        await ready(process)
        async with in_background(Player(api).play()), asyncio.TaskGroup() as tasks:
            for number in range(size.soak_seconds):
                tasks.create_task(one(api, named(number)))
                if number == size.soak_seconds // 3:
                    early = process.resident_bytes, process.descriptors
                await asyncio.sleep(1)
        late = process.resident_bytes, process.descriptors

        async def nothing_is_left() -> bool:
            return not any([(await api.list_with_version(path))[0] for path in (FINETUNES, JOBS, PODS)])

        await until(nothing_is_left, 120)
    grown, opened = (late[0] - early[0]) / 2**20, late[1] - early[1]
    words = f"{late[0] / 2**20:.0f} MiB, {grown:+.1f} since a third of it; {opened:+d} descriptors; nothing left"
    return Line(f"{size.soak_seconds} s of one a second", "flat, 0 orphans", words, grown < 8 and abs(opened) < 8)


# --- all of it ------------------------------------------------------------------------------------------------------


def with_operator(load: Callable[[LightCluster, Process, Size], Any], size: Size) -> list[Line]:
    """A load on an API server and an operator of its own."""
    with fresh_cluster() as light, operator(light) as process:
        return [asyncio.run(load(light, process, size))]


def _key(name: str) -> Key:
    return Key(NAMESPACE, name)


def page(lines: list[Line], facts: dict[str, object]) -> str:
    """The table."""
    head = [
        "# The operator under load",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, which API server, etcd, controllers, load and operator share.",
        f"Both sides write with {AT_ONCE} requests in flight. Made by `make bench-operator`.",
        "",
        "| load | bar | measured | |",
        "|--|--|--|--|",
    ]
    rows = [
        f"| {line.load} | {line.bar} | {line.measured} | {'holds' if line.holds else '**missed**'} |" for line in lines
    ]
    return "\n".join([*head, *rows, ""])


def write(lines: list[Line], ratio: float) -> None:
    """`results/operator-<machine>.json` and `.md`, with the loads so far."""
    facts = machine()
    path = RESULTS / f"operator-{machine_words(facts)}.json"
    record = {"machine": facts, "ratio": round(ratio, 3), "lines": [vars(line) for line in lines]}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(lines, facts), encoding="utf-8")


def main() -> int:
    """Every load in turn; the table, then the ratio."""
    parser = argparse.ArgumentParser(prog="python -m bench.operator", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    asked = parser.parse_args()
    size = QUICK if asked.quick else Size()
    lines, ratio = created_at_once(size)
    more, status = requests_of_a_life(size)
    lines += more
    print(f"{lines[-1].load}: {lines[-1].measured}", flush=True)
    for load in (
        lambda: over_and_cold(size, status),
        lambda: with_operator(reported, size),
        lambda: with_operator(neighbours, size),
        lambda: with_operator(soak, size),
    ):
        more = load()
        lines += more
        for line in more:
            print(f"{line.load}: {line.measured}", flush=True)
        if not asked.quick:
            write(lines, ratio)
    print(page(lines, machine()))
    print(f"{ratio:.2f} x")
    return 0 if all(line.holds for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
