"""SIGTERM, taken once: what is done after it, such as a last checkpoint, is not interrupted by a second one."""

import pytest
from finetune_trainer.errors import Termination
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
