"""How busy the pod's GPUs are while it trains, as their driver counts: a thread asks now and then.

Loads without torch. A GPU that waits for its host shows here and nowhere else: the steps go on, only slowly.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from statistics import fmean

WINDOW_SECONDS = 600.0
"""What is told is the mean over so long; before that, nothing."""

SAMPLE_SECONDS = 5.0
"""Time between two samples, each of which covers up to a second. Source: NVIDIA, NVML API reference,
nvmlUtilization_t."""

Read = Callable[[], float]
"""Gives the percentage of the last moment in which a kernel ran. Raises OSError where nobody can tell."""


def read_gpus(count: int) -> float:
    """Mean over the pod's GPUs. Raises OSError where NVML cannot be asked: no driver, or a part of a GPU."""
    import torch

    try:
        return fmean(torch.cuda.utilization(gpu) for gpu in range(count))
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


class Utilization:
    """The samples of the last while."""

    def __init__(self, read: Read, samples: int = int(WINDOW_SECONDS / SAMPLE_SECONDS)) -> None:
        self._read = read
        self._samples: deque[float] = deque(maxlen=samples)

    @property
    def percent(self) -> int | None:
        """The mean, once there are samples of the whole window."""
        samples = list(self._samples)
        return round(fmean(samples)) if len(samples) == self._samples.maxlen else None

    def sample(self) -> None:
        """Ask once. Raises OSError."""
        self._samples.append(self._read())

    @contextmanager
    def sampled(self, interval_seconds: float = SAMPLE_SECONDS) -> Iterator[None]:
        """Inside, a thread asks; it ends with the first question that has no answer."""
        over = threading.Event()

        def ask() -> None:
            with suppress(OSError):
                while not over.wait(interval_seconds):
                    self.sample()

        thread = threading.Thread(target=ask, name="utilization", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
