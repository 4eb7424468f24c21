"""Whether this process still hears the API server, and is quick enough to answer: what its liveness probe asks.

Whoever works renews its Lease every two seconds, so the watch of that Lease tells something as often; where it falls
silent, so has, most likely, every other watch of this process.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

SILENCE_SECONDS = 180.0
"""How long the watch may be silent: long enough for an API server to be restarted."""

LAG_SECONDS = 5.0
"""How much later than asked for the event loop may wake up."""

TICK_SECONDS = 1.0
"""How often that is measured."""

LAGS_KEPT = 60
"""Measurements of which the largest is shown as a metric."""


class Heartbeat:
    """What was last heard, and how late the event loop is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard_at: float | None = None
        self._due = clock() + TICK_SECONDS
        self._lags: deque[float] = deque([0.0], maxlen=LAGS_KEPT)

    def beat(self) -> None:
        """Something was heard; from the first time on, silence is a fault."""
        self._heard_at = self._clock()

    @property
    def silence_seconds(self) -> float:
        """Time since something was heard; 0 before the first time."""
        return 0.0 if self._heard_at is None else self._clock() - self._heard_at

    @property
    def largest_lag_seconds(self) -> float:
        """The largest lag of the last minute."""
        return max(self._lags)

    async def measure(self) -> None:
        """Measure the lag of the event loop, for ever."""
        while True:
            self._due = self._clock() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self._lags.append(max(0.0, self._clock() - self._due))

    def trouble(self) -> str | None:
        """Why this process had better be restarted; None while it is well."""
        if (silence := self.silence_seconds) > SILENCE_SECONDS:
            return f"the watch of the own Lease has told nothing for {silence:.0f} s; {SILENCE_SECONDS:.0f} are allowed"
        # A tick that is overdue counts before it is measured: whoever asks may come first.
        lag = max(self._lags[-1], self._clock() - self._due)
        if lag > LAG_SECONDS:
            return f"the event loop is {lag:.0f} s late; {LAG_SECONDS:.0f} are allowed"
        return None
