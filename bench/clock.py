"""A clock that also tells how much of the processor other programs took."""

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")


class Clock:
    """Seconds since `start`, and the share of all processor time that others had."""

    seconds = 0.0
    others_share = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._began = (time.monotonic(), time.process_time(), busy_seconds())

    def stop(self) -> None:
        """Keep what was counted."""
        wall, own, busy = self._began
        self.seconds = time.monotonic() - wall
        others = (busy_seconds() - busy) - (time.process_time() - own)
        self.others_share = max(others, 0.0) / (self.seconds * (os.cpu_count() or 1))


def busy_seconds() -> float:
    """Processor time that this machine has spent on any program, in seconds; 0 where Linux does not tell.

    Source: proc(5), /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
    """
    if not STAT.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, STAT.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
