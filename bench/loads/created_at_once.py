"""Many Finetunes created at once, against a bare loop that makes the same writes."""

import asyncio
import time
from datetime import UTC, datetime
from statistics import mean

from finetune_api.names import Stage
from finetune_api.resource import parse_finetune
from finetune_operator.cluster import Cluster
from finetune_operator.decide import decide
from finetune_operator.manifests import attempt_manifests
from finetune_operator.observed import Observed
from finetune_operator.settings import Settings

from bench import fleet
from bench.loads.measured import Line, Size, p99
from tests.cluster.light import LightCluster

SETTINGS = Settings(trainer_image="trainer:test", report_url="http://127.0.0.1:1")
TARGET = 0.75
"""Of the bare loop's rate."""


async def burst(light: LightCluster, process: fleet.Process, count: int) -> tuple[float, list[float]]:
    """Finetunes a second that got their Job, and how long each of them waited for it, in seconds."""
    sent: dict[str, float] = {}

    async def send(number: int) -> None:
        sent[fleet.named(number)] = time.monotonic()
        await fleet.create(api, fleet.named(number))

    async with fleet.connected(light) as api:
        await fleet.ready(process)
        seen = fleet.Sightings()
        async with fleet.in_background(seen.watch(api)):
            await asyncio.sleep(1)
            began = time.monotonic()
            await fleet.in_parallel(send, range(count))
            await seen.of(sent)
    waits = [seen.at[name] - at for name, at in sent.items()]
    return count / (max(seen.at.values()) - began), waits


async def bare(light: LightCluster, count: int) -> float:
    """The same writes a second, in a loop that neither watches nor decides."""

    async def write(number: int) -> None:
        finetune = parse_finetune(await fleet.create(api, fleet.named(number)))
        decision = decide(finetune, Observed(), SETTINGS, datetime.now(UTC).replace(microsecond=0))
        await cluster.write_status(finetune, decision.status)
        for manifest in attempt_manifests(finetune, Stage.PREPARE, 1, SETTINGS):
            await cluster.create(manifest)

    async with fleet.connected(light) as api:
        cluster, began = Cluster(api), time.monotonic()
        await fleet.in_parallel(write, range(count))
        return count / (time.monotonic() - began)


def created_at_once(size: Size) -> tuple[list[Line], float]:
    """Rounds that take turns, each with an API server of its own."""
    ours, theirs, waits = [], [], list[float]()
    for number in range(size.rounds):
        with fleet.fresh_cluster() as light:
            theirs.append(asyncio.run(bare(light, size.burst)))
        with fleet.fresh_cluster() as light, fleet.operator(light) as process:
            rate, waited = asyncio.run(burst(light, process, size.burst))
            ours.append(rate)
            waits += waited
        print(f"round {number + 1}: bare {theirs[-1]:.0f}/s, operator {ours[-1]:.0f}/s", flush=True)
    ratio = mean(ours) / mean(theirs)
    words = f"{mean(ours):.0f}/s, bare {mean(theirs):.0f}/s: {ratio:.2f} x; p99 {p99(waits):.1f} s"
    return [Line(f"{size.burst:,} created at once", f"{TARGET} x bare", words, ratio >= TARGET)], ratio
