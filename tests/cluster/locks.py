"""Locks between processes, held by the kernel: a crash frees them."""

import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.problem import ClusterProblem


@contextmanager
def locked(path: Path, what: str, *, shared: bool = False, seconds: float = 900) -> Iterator[None]:
    """Holds the lock file while the body runs; `what` tells a person who waits what for.

    Raises ClusterProblem after `seconds`. The file itself stays: to remove it would let two in at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _acquire(file.fileno(), path, what, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, seconds)
        yield


def _acquire(descriptor: int, path: Path, what: str, kind: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    told = False
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ClusterProblem(
                    f"{what} has been going on in another process for {seconds:.0f} s: see `fuser -v {path}`."
                ) from None
            if not told:
                print(f"Waiting: {what} is going on in another process.", file=sys.stderr, flush=True)
                told = True
            time.sleep(0.1)
        else:
            return
