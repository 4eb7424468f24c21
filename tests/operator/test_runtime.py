"""What keeps the running operator at work, whatever a single answer of the API server is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

from finetune_operator.api_server import ApiServer
from finetune_operator.cluster import Key
from finetune_operator.runtime import Operator

from tests.builders import some_settings

KEY = Key("team-a", "run")


class OddOnce:
    """An API server whose first listing is nothing that anybody expects."""

    def __init__(self) -> None:
        self.listings = 0

    async def pages(self, _: str, **__: Any) -> AsyncIterator[tuple[list[dict[str, Any]], str]]:
        self.listings += 1
        if self.listings == 1:
            raise KeyError("metadata")
        yield [{"metadata": {**KEY._asdict(), "resourceVersion": "1"}}], "1"


async def test_a_listing_that_nobody_expects_does_not_end_the_resync() -> None:
    operator = Operator(cast(ApiServer, OddOnce()), some_settings(resync_seconds=0.01), lambda: None)
    resync = asyncio.create_task(operator._resync())
    async with asyncio.timeout(5):
        assert await operator.queue.get() == KEY
    resync.cancel()
    with suppress(asyncio.CancelledError):
        await resync
