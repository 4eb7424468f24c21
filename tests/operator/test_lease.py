"""The claim on the Lease, without an API server: what only one that does not answer can show."""

import asyncio
from typing import Any, cast

import pytest
from finetune_operator import lease
from finetune_operator.lease import Leadership, Lease


class Hanging:
    """An API server that answers once, and then leaves every request open."""

    def __init__(self) -> None:
        self.answers = True

    async def get(self) -> dict[str, Any] | None:
        if not self.answers:
            await asyncio.Event().wait()
        return None

    async def put(self, spec: dict[str, Any], known: dict[str, Any] | None) -> None:
        self.answers = False


async def test_a_holder_whose_renewal_hangs_leaves_before_another_may_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(lease, "GIVE_UP_SECONDS", 0.1)
    lost = asyncio.Event()
    leadership = Leadership(cast(Lease, Hanging()), "me", lost.set)
    await leadership.acquire()
    async with asyncio.timeout(5):
        await lost.wait()
    assert leadership.age_seconds < 1
