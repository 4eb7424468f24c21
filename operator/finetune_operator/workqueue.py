"""A queue of keys: each waits once, no key is worked on twice at a time, and one that fails comes back later.

The semantics are those of client-go's rate-limited workqueue.
"""

import asyncio
import random
import time
from collections.abc import Hashable
from typing import Generic, TypeVar

from finetune_operator import metrics

K = TypeVar("K", bound=Hashable)

FIRST_RETRY_SECONDS = 0.2
LONGEST_RETRY_SECONDS = 30.0


class WorkQueue(Generic[K]):
    """Keys to work on. `get` and `done` frame the work on one key."""

    def __init__(self) -> None:
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._due_since: dict[K, float] = {}
        self._busy: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return self._ready.qsize()

    @property
    def failing(self) -> int:
        """How many keys have failed and not succeeded since."""
        return len(self._failures)

    def add(self, key: K) -> None:
        """Work on the key soon; while it is worked on, once more after that."""
        if key in self._busy:
            self._again.add(key)
        elif key not in self._due_since:
            self._due_since[key] = time.monotonic()
            self._ready.put_nowait(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Work on the key in so many seconds; of several such wishes the earliest counts."""
        loop = asyncio.get_running_loop()
        due, timer = loop.time() + seconds, self._timers.get(key)
        if timer and not timer.cancelled() and timer.when() <= due:
            return
        if timer:
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._fire, key)

    def retry(self, key: K, at_least: float = 0.0) -> float:
        """Work on a key that failed again, after a growing and jittered wait; returns the wait in seconds.

        `at_least` is what whoever refused it asked for; jitter is added to it, so that not all come back at once.
        """
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        seconds = min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 30), LONGEST_RETRY_SECONDS)
        jittered = max(seconds * random.uniform(0.8, 1.2), at_least * random.uniform(1.0, 1.2))
        self.add_after(key, jittered)
        return jittered

    def succeeded(self, key: K) -> None:
        """Forget the key's failures."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """The next key; waits for one."""
        key = await self._ready.get()
        metrics.QUEUE_SECONDS.observe(time.monotonic() - self._due_since.pop(key))
        self._busy.add(key)
        return key

    def done(self, key: K) -> None:
        """The work on the key has ended, well or badly."""
        self._busy.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _fire(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)
