"""SIGTERM, taken once: what is done after it, such as a last checkpoint, is not interrupted by a second one."""

import os
import signal
import threading

import pytest
from finetune_trainer.errors import Termination
from finetune_trainer.side_by_side import CALLS_AT_ONCE, side_by_side
from finetune_trainer.termination import StopSignal


def test_whoever_is_leaving_is_not_told_twice() -> None:
    stop = StopSignal()
    with pytest.raises(Termination):
        stop(15, None)
    stop(15, None)


def test_a_rank_that_leaves_because_another_was_told_to_finishes_its_checkpoint() -> None:
    """The Job controller tells the pod of the first rank, which saves, as soon as the pod of another has ended."""
    stop = StopSignal()
    with pytest.raises(Termination), stop.held():
        stop.check(lambda _: True)
    stop(15, None)


def test_whoever_is_told_to_leave_waits_for_no_download_and_begins_none() -> None:
    begun, finished, server = list[int](), list[int](), threading.Event()

    def download(number: int) -> None:
        begun.append(number)
        if number == CALLS_AT_ONCE - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        server.wait(10)
        finished.append(number)

    before = signal.signal(signal.SIGUSR1, StopSignal())
    try:
        with pytest.raises(Termination):
            side_by_side(download, range(3 * CALLS_AT_ONCE))
        assert (len(begun), finished) == (CALLS_AT_ONCE, [])
    finally:
        server.set()
        signal.signal(signal.SIGUSR1, before)
