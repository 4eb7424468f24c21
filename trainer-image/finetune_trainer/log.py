"""The run's log: one line per event on standard error, as text or as JSON. Nothing secret is ever given to it."""

import json
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Self, TextIO

from finetune_api.words import one_line

Number = float | int | None

BAR_WIDTH = 30
BAR_SECONDS = 0.1
"""Shortest time between two drawings of the bar."""

ERASED = "\r\x1b[2K"
"""Back to the start of the line, and nothing on it."""


class Log:
    """Writes lines that hold no control characters, whatever a model or a data row put into them."""

    def __init__(self, as_json: bool = False, stream: TextIO | None = None, only_errors: bool = False) -> None:
        self._as_json = as_json
        self._stream = stream or sys.stderr
        self._only_errors = only_errors
        self._bar_drawn = 0.0

    def bar(self, done: int, total: int, words: str = "") -> None:
        """How far it is, on one line that is drawn over; on a terminal only, and seldom enough to cost nothing."""
        now = time.monotonic()
        quiet = self._as_json or self._only_errors or not self._stream.isatty()
        if quiet or (done < total and now - self._bar_drawn < BAR_SECONDS):
            return
        full = BAR_WIDTH * done // max(total, 1)
        print(
            f"{ERASED}{'█' * full}{'░' * (BAR_WIDTH - full)} {done}/{total} {words}",
            end="",
            file=self._stream,
            flush=True,
        )
        self._bar_drawn = now

    def muted(self) -> Self:
        """The same log, where only mistakes of ours are written: for those who repeat what another process says."""
        return type(self)(self._as_json, self._stream, only_errors=True)

    def say(self, message: str, **numbers: Number) -> None:
        """One line about what is going on, with numbers by name."""
        self._write("info", message, numbers)

    def table(self, lines: Sequence[str]) -> None:
        """Lines whose columns stand below one another; nothing of a user's stands in them."""
        for line in lines:
            self._write("table", line, {})

    def warn(self, message: str) -> None:
        """Something that a user should know, and that stops nothing."""
        self._write("warning", message, {})

    def unexpected(self, error: BaseException) -> None:
        """The traceback of a mistake of ours, line by line."""
        for line in "".join(traceback.format_exception(error)).splitlines():
            self._write("error", line, {})

    def _write(self, level: str, message: str, numbers: dict[str, Number]) -> None:
        if self._only_errors and level != "error":
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        message = message.rstrip() if level in ("error", "table") else one_line(message)
        known = {name: number for name, number in numbers.items() if number is not None}
        level = "info" if level == "table" else level
        if self._as_json:
            line = json.dumps({"time": now, "level": level, "message": message, **known})
        else:
            shown = "".join(f" {name} {number:.4g}" for name, number in known.items())
            prefix = "" if level == "info" else f"{level}: "
            line = f"{now} {prefix}{message}{shown}"
        if self._bar_drawn:
            line, self._bar_drawn = ERASED + line, 0.0
        print(line, file=self._stream, flush=True)
