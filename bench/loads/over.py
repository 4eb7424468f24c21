"""Many Finetunes that are over: at rest, and when an operator starts."""

import asyncio
import time
from collections import Counter
from typing import Any

from bench import fleet
from bench.loads.measured import Line, Size
from tests.cluster.light import LightCluster


async def finished(light: LightCluster, numbers: range, status: dict[str, Any]) -> None:
    """Finetunes that are over, made while no operator looks."""

    async def make(number: int) -> None:
        await fleet.create(api, fleet.named(number))
        await fleet.apply_status(api, fleet.named(number), status)

    async with fleet.connected(light) as api:
        await fleet.in_parallel(make, numbers)


async def cold_start(light: LightCluster, process: fleet.Process, count: int, began: float) -> float:
    """Seconds from the operator's start until it has looked at all, and has made the Job of one that is new."""
    async with fleet.connected(light) as api:
        seen = fleet.Sightings()
        async with fleet.in_background(seen.watch(api)):
            await asyncio.sleep(0.5)
            await fleet.create(api, f"new-beside-{count}")
            await fleet.ready(process)
            await seen.of([f"new-beside-{count}"])

            async def caught_up() -> bool:
                now = process.metrics()
                return now['finetune_reconciles_total{outcome="ok"}'] >= count and now["finetune_queue_length"] == 0

            await fleet.until(caught_up)
    return time.monotonic() - began


def idle(process: fleet.Process, seconds: float) -> tuple[Counter[str], float]:
    """Requests meanwhile, by verb, and the share of a core that was used."""
    before, cpu = process.requests(), process.cpu_seconds
    time.sleep(seconds)
    return process.requests() - before, (process.cpu_seconds - cpu) / seconds


def over_and_cold(size: Size, status: dict[str, Any]) -> list[Line]:
    """A thousand that are over cost nothing; thousands are taken in quickly when the operator starts."""
    with fleet.fresh_cluster() as light:
        asyncio.run(finished(light, range(size.idle), status))
        with fleet.operator(light) as process:
            asyncio.run(cold_start(light, process, size.idle, time.monotonic()))
            asked, share = idle(process, size.idle_seconds)
        asyncio.run(finished(light, range(size.idle, size.present), status))
        began = time.monotonic()
        with fleet.operator(light) as process:
            seconds = asyncio.run(cold_start(light, process, size.present, began))
            memory = process.peak_bytes / 2**20
    writes = asked["PATCH"] + asked["POST"] + asked["DELETE"]
    words = f"{writes} writes but the Lease's, {asked['GET']} reads in {size.idle_seconds} s, {share:.1%} of a core"
    return [
        Line(f"{size.idle:,} over", "no write, < 5 % of a core", words, not writes and share < 0.05),
        Line(
            f"{size.present:,} present, cold start",
            "< 60 s, < 250 MiB",
            f"{seconds:.1f} s, {memory:.0f} MiB at most",
            seconds < 60 and memory < 250,
        ),
    ]
