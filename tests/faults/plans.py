"""The faults."""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any

from tests.faults.proxy import Answer, Call, HungUp, Plan

Ask = Callable[[], Awaitable[Answer]]


def refusal(code: int, reason: str, **details: Any) -> bytes:
    """A Status of the API server."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}
    return json.dumps(status | {"message": f"injected {reason}", "details": details}).encode()


class Killed(Plan):
    """The operator dies by SIGKILL before its k-th write reaches the API server."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.kill: Callable[[], None]
        self._left = number

    async def meet(self, call: Call, ask: Ask) -> Answer:
        self._left -= call.is_write
        if self._left or not call.is_write:
            return await ask()
        self.kill()
        self.ended_at = time.monotonic()
        raise HungUp


class Frozen(Plan):
    """The operator stands still at its first write of a kind, and so does that write, until another one has worked."""

    def __init__(self, method: str, path: str, seconds: float) -> None:
        """`path`: a part of it. `seconds`: how long the other one works meanwhile."""
        super().__init__()
        self.freeze: Callable[[], Awaitable[None]]
        self.thaw: Callable[[], Awaitable[None]]
        self._method, self._path, self._seconds = method, path, seconds
        self._is_over = False

    async def meet(self, call: Call, ask: Ask) -> Answer:
        if self._is_over or call.method != self._method or self._path not in call.path:
            return await ask()
        self._is_over = True
        await self.freeze()
        await asyncio.sleep(self._seconds)
        answer = await ask()
        await self.thaw()
        self.ended_at = time.monotonic()
        return answer


class Away(Plan):
    """From its k-th write on nobody answers, for so many seconds; all streams end."""

    def __init__(self, number: int, seconds: float) -> None:
        super().__init__()
        self._number, self._seconds = number, seconds
        self._seen, self._until = 0, 0.0

    async def meet(self, call: Call, ask: Ask) -> Answer:
        self._seen += call.is_write
        if not self._until and self._seen == self._number:
            self.ended_at = self._until = time.monotonic() + self._seconds
            for transport in tuple(self.streams):
                transport.abort()
        self._refuse()
        return await ask()

    async def open_watch(self, call: Call) -> Answer | None:
        self._refuse()
        return None

    def _refuse(self) -> None:
        if time.monotonic() < self._until:
            raise HungUp


class Failing(Plan):
    """A share of all requests is answered with 500, every second of them after it was done; the Lease's as well."""

    def __init__(self, share: float, seed: int) -> None:
        super().__init__()
        self._random, self._share, self._failed = random.Random(seed), share, 0

    async def meet(self, call: Call, ask: Ask) -> Answer:
        if self._random.random() >= self._share:
            return await ask()
        self._failed += 1
        if self._failed % 2:
            await ask()
        return Answer(500, refusal(500, "InternalError"))


class Throttled(Plan):
    """For some seconds every request but the Lease's is answered with 429 and how long to stay away."""

    def __init__(self, number: int, seconds: float, retry_after: int) -> None:
        super().__init__()
        self._number, self._seconds, self._retry_after = number, seconds, retry_after
        self._seen, self._until, self._told_at = 0, 0.0, -inf
        self.refused = 0
        self.too_early: list[str] = []
        """Requests that came although the operator had been told to stay away, and had had a second to hear it."""

    async def meet(self, call: Call, ask: Ask) -> Answer:
        self._seen += call.is_write
        if not self._until and self._seen == self._number:
            self.ended_at = self._until = time.monotonic() + self._seconds
        if "/leases" in call.path:
            return await ask()
        now = time.monotonic()
        if 1 < now - self._told_at < self._retry_after:
            self.too_early.append(f"{call.method} {call.path} came after {now - self._told_at:.1f} s")
        if now >= self._until:
            return await ask()
        if now - self._told_at > self._retry_after:
            self._told_at = now
        self.refused += 1
        return Answer(429, refusal(429, "TooManyRequests"), (("Retry-After", str(self._retry_after)),))


class CutShort(Plan):
    """Every third answer breaks off in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    async def meet(self, call: Call, ask: Ask) -> Answer:
        answer = await ask()
        self._seen += 1
        if self._seen % 3 == 0 and "/leases" not in call.path:
            raise HungUp(answer)
        return answer


class Conflicting(Plan):
    """Every status meets somebody quicker, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = self._left = times

    async def meet(self, call: Call, ask: Ask) -> Answer:
        if not call.path.endswith("/status"):
            return await ask()
        if self._left:
            self._left -= 1
            return Answer(409, refusal(409, "Conflict"))
        self._left = self._times
        return await ask()


class Expired(Plan):
    """The first watches of each kind are refused with 410, or told so by an event."""

    def __init__(self, times: int, *, by_event: bool, code: int = 410) -> None:
        super().__init__()
        self._left: dict[str, int] = {}
        self._times, self._by_event, self._code = times, by_event, code

    async def open_watch(self, call: Call) -> Answer | None:
        left = self._left.setdefault(call.path, self._times)
        if not left or "/leases" in call.path:
            return None
        self._left[call.path] = left - 1
        status = refusal(self._code, "Expired" if self._code == 410 else "InternalError")
        if not self._by_event:
            return Answer(self._code, status)
        return Answer(200, json.dumps({"type": "ERROR", "object": json.loads(status)}).encode() + b"\n")


class Deaf(Plan):
    """Watches begin, and tell nothing."""

    def told(self, call: Call, line: bytes) -> list[bytes]:
        return [line] if "/leases" in call.path else []


class Mute(Plan):
    """From a moment on no request is answered, and none breaks off either."""

    def __init__(self) -> None:
        super().__init__()
        self.is_mute = False
        self.is_watched = False
        """True once an operator works: it hears its own Lease."""

    async def meet(self, call: Call, ask: Ask) -> Answer:
        if self.is_mute:
            await asyncio.Event().wait()
        return await ask()

    async def open_watch(self, call: Call) -> Answer | None:
        self.is_watched |= "/leases" in call.path
        return None


class Stammering(Plan):
    """Each event comes twice."""

    def told(self, call: Call, line: bytes) -> list[bytes]:
        return [line, line]


class Forgetful(Plan):
    """Every second event is lost, and every DELETED."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    def told(self, call: Call, line: bytes) -> list[bytes]:
        self._seen += 1
        lost = self._seen % 2 == 0 or b'"type":"DELETED"' in line[:40]
        return [] if lost and "/leases" not in call.path else [line]
