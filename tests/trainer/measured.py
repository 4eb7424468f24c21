"""What a block of code really takes."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.autograd.profiler import profile


@contextmanager
def measured_peak() -> Iterator[list[int]]:
    """Peak of what torch's CPU allocator gives out inside, kernels' own workspace included, as its profiler tells."""
    found: list[int] = []
    with profile(use_kineto=True, profile_memory=True) as told:
        yield found
    now = peak = 0
    events = [event for event in told.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    found.append(peak)
