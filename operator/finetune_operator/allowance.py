"""How often somebody may do something: so many times at once, and so many a second after that."""

import time
from collections.abc import Callable, Hashable

KEYS = 10_000
"""Most keys remembered. Beyond it whoever was seen longest ago starts afresh."""


class Allowance:
    """A token bucket for each key. Source: RFC 2697's bucket, in events in place of bytes."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._left: dict[Hashable, tuple[float, float]] = {}
        """What was left of each bucket, and when; in the order of last use."""

    def left(self, key: Hashable) -> float:
        """How many times the key may do it now."""
        amount, at = self._left.get(key, (self._burst, 0.0))
        return min(self._burst, amount + (self._clock() - at) * self._per_second)

    def take(self, key: Hashable) -> bool:
        """Once more for this key; False where it has to wait, which costs it nothing."""
        if (left := self.left(key)) < 1:
            return False
        self._left.pop(key, None)
        self._left[key] = (left - 1, self._clock())
        while len(self._left) > KEYS:
            del self._left[next(iter(self._left))]
        return True
