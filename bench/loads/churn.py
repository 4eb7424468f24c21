"""Finetunes that come and go, for as long as one likes to wait."""

import asyncio

from finetune_operator.api_server import ApiServer

from bench import fleet
from bench.loads.measured import Line, Size
from tests.cluster.light import LightCluster


async def soak(light: LightCluster, process: fleet.Process, size: Size) -> Line:
    """One created, finished and deleted each second."""

    async def one(api: ApiServer, name: str) -> None:
        await fleet.create(api, name)

        async def is_over() -> bool:
            body = await api.request("GET", f"{fleet.FINETUNES}/{name}")
            return bool(body.get("status", {}).get("phase") == "Succeeded")

        await fleet.until(is_over)
        await api.request("DELETE", f"{fleet.FINETUNES}/{name}", body={"propagationPolicy": "Background"})

    async with fleet.connected(light) as api:
        await fleet.ready(process)
        async with fleet.in_background(fleet.Player(api).play()), asyncio.TaskGroup() as tasks:
            for number in range(size.soak_seconds):
                tasks.create_task(one(api, fleet.named(number)))
                if number == size.soak_seconds // 3:
                    early = process.resident_bytes, process.descriptors
                await asyncio.sleep(1)
        late = process.resident_bytes, process.descriptors

        async def nothing_is_left() -> bool:
            return not any([(await fleet.listed(api, path))[0] for path in (fleet.FINETUNES, fleet.JOBS, fleet.PODS)])

        await fleet.until(nothing_is_left, 120)
    grown, opened = (late[0] - early[0]) / 2**20, late[1] - early[1]
    words = f"{late[0] / 2**20:.0f} MiB, {grown:+.1f} since a third of it; {opened:+d} descriptors; nothing left"
    return Line(f"{size.soak_seconds} s of one a second", "flat, 0 orphans", words, grown < 8 and abs(opened) < 8)
