"""One Finetune that is changed all the time, and those beside it."""

import asyncio
import time

from finetune_operator.api_server import MERGE_PATCH, ApiServer

from bench import fleet
from bench.loads.measured import Line, Size, p99
from tests.cluster.light import LightCluster


async def neighbours(light: LightCluster, process: fleet.Process, size: Size) -> Line:
    """How long others wait for their Job, alone and beside one that is changed many times a second."""

    async def waits(api: ApiServer, prefix: str) -> list[float]:
        seen, sent = fleet.Sightings(), dict[str, float]()
        async with fleet.in_background(seen.watch(api)):
            await asyncio.sleep(1)
            for number in range(size.others):
                name = f"{prefix}-{number}"
                sent[name] = time.monotonic()
                await fleet.create(api, name)
                await asyncio.sleep(0.1)
            await seen.of(sent)
        return [seen.at[name] - at for name, at in sent.items()]

    async def change(api: ApiServer) -> None:
        number = 0
        while True:
            number += 1
            body = {"metadata": {"annotations": {"changed": str(number)}}}
            await api.request("PATCH", f"{fleet.FINETUNES}/noisy", body=body, content_type=MERGE_PATCH)
            await asyncio.sleep(1 / size.changes_a_second)

    async with fleet.connected(light) as api:
        await fleet.ready(process)
        await fleet.create(api, "noisy")
        alone = await waits(api, "alone")
        async with fleet.in_background(change(api)):
            beside = await waits(api, "beside")
    words = f"p99 {p99(beside) * 1000:.0f} ms beside it, {p99(alone) * 1000:.0f} ms alone"
    return Line(f"one changed {size.changes_a_second} times a second", "others' p99 unchanged", words,
                p99(beside) < 2 * p99(alone) + 0.05)  # fmt: skip
