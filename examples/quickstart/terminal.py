"""What the quickstart prints: one line for each step, and a line that is redrawn while something lasts."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

QUIET_SECONDS = 5.0
"""Where the output is no terminal, a line that changes is printed this often."""

WIDTH = 60
"""Characters of a step's words, so that the seconds stand in one column."""

Result = TypeVar("Result")


@contextmanager
def step(words: str) -> Iterator[None]:
    """Print the step and the seconds it took, once it is done."""
    started = time.monotonic()
    yield
    say(words, time.monotonic() - started)


def say(words: str, seconds: float) -> None:
    """One line about something that is done."""
    print(f"  {words:<{WIDTH}} {seconds:5.1f} s", flush=True)


def timed(words: str, work: Callable[[], Result]) -> Result:
    """The result of a step."""
    with step(words):
        return work()


class LiveLine:
    """A line that is redrawn on a terminal, and printed every few seconds elsewhere."""

    def __init__(self) -> None:
        self._drawn = ""
        self._last = -QUIET_SECONDS

    def show(self, text: str, now: bool = False) -> None:
        """The line as it is now; with `now` it is printed whatever the time."""
        if sys.stdout.isatty():
            print(f"\r\033[K  {text}", end="", flush=True)
        elif text != self._drawn and (now or time.monotonic() - self._last >= QUIET_SECONDS):
            print(f"  {text}", flush=True)
            self._last = time.monotonic()
        self._drawn = text

    def end(self) -> None:
        """Whatever is printed next begins a new line."""
        if sys.stdout.isatty() and self._drawn:
            print("\r\033[K", end="", flush=True)
