"""Answers that are worth keeping for a while, so that a thousand runs ask for them once. Pure."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """Values by key, each for some seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._known: dict[str, tuple[float, Value]] = {}

    def get(self, key: str) -> Value | None:
        """The value, while it is young enough."""
        until, value = self._known.get(key, (0.0, None))
        return value if until > self._clock() else None

    def put(self, key: str, value: Value) -> Value:
        """Keep the value, drop those that are too old; returns it."""
        now = self._clock()
        self._known = {name: entry for name, entry in self._known.items() if entry[0] > now}
        self._known[key] = (now + self._seconds, value)
        return value
