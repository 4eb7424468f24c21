"""SIGTERM: an exception at once, or noted until a step is whole. Loads without torch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from finetune_trainer.errors import Termination


class StopSignal:
    """The handler of SIGTERM. It raises Termination in the main thread, so that every `with` and `finally` runs.

    A signal may come between any two instructions. Where that would leave a step half done, `held` keeps it back.
    """

    def __init__(self) -> None:
        self._came = False
        self._is_held = False
        self._is_leaving = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take the signal. Whoever is leaving already has a checkpoint to finish, and is not to be told twice."""
        self._came = True
        if not (self._is_held or self._is_leaving):
            self._leave()

    def check(self, agree: Callable[[bool], bool] = bool) -> None:
        """Raise Termination if the signal came while it was held. `agree` asks others, who stop together with us."""
        if agree(self._came):
            self._leave()

    def _leave(self) -> NoReturn:
        self._is_leaving = True
        raise Termination

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the signal is only noted; it is raised by `check`, by `released`, and at the end."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        self.check()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Inside, which is within `held`, the signal is raised at once."""
        self._is_held = False
        try:
            self.check()
            yield
        finally:
            self._is_held = True
