"""Requests from creation to Succeeded."""

import asyncio
from collections import Counter
from typing import Any

from finetune_operator.cluster import Cluster, Key

from bench import fleet
from bench.loads.measured import Line, Size
from tests.cluster.light import LightCluster


async def lives(light: LightCluster, process: fleet.Process, count: int) -> tuple[Counter[str], dict[str, Any]]:
    """Requests of so many whole lives, by verb, and the status that one has come to."""
    async with fleet.connected(light) as api:
        await fleet.ready(process)
        async with fleet.in_background(fleet.Player(api).play()):
            before = process.requests()
            await fleet.in_parallel(lambda number: fleet.create(api, fleet.named(number)), range(count))

            async def all_succeeded() -> bool:
                return (await fleet.phases(api))["Succeeded"] == count

            await fleet.until(all_succeeded)
            found = process.requests() - before
        body = await Cluster(api).get_finetune_body(Key(fleet.NAMESPACE, fleet.named(0)))
        assert body is not None
        return found, body["status"]


def requests_of_a_life(size: Size) -> tuple[list[Line], dict[str, Any]]:
    """From creation to Succeeded, over prepare and train, with nobody who reports progress."""
    with fleet.fresh_cluster() as light, fleet.operator(light) as process:
        found, status = asyncio.run(lives(light, process, size.lives))
    each = sum(found.values()) / size.lives
    words = ", ".join(f"{verb} {number / size.lives:.1f}" for verb, number in sorted(found.items()))
    return [Line(f"{size.lives} whole lives", "25 requests each", f"{each:.1f} each ({words})", each <= 25)], status
