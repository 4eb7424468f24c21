"""The start of a stage: what is fetched while Python imports torch, and what is not imported. Loads without torch."""

import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Generic, TypeVar

from finetune_api.names import MANIFEST_FILE
from finetune_api.resource import TrainingSpec
from finetune_api.run import RunSpec
from finetune_api.training import Optimizer, Quantization

from finetune_trainer.fetch import ModelFiles, fetch_model
from finetune_trainer.store import Store

T = TypeVar("T")

BITSANDBYTES = "bitsandbytes"


class Ahead(Generic[T]):
    """A call that is made at once, in a thread of its own; its outcome is asked for later, or never."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._outcome: Future[T] = Future()
        # A daemon: nobody waits for what was not asked for.
        Thread(target=self._make, name="ahead", daemon=True).start()

    def __call__(self) -> T:
        """What the call gave; raises what it raised."""
        return self._outcome.result()

    def _make(self) -> None:
        try:
            self._outcome.set_result(self._call())
        except BaseException as error:  # noqa: BLE001 (whoever asks gets it)
            self._outcome.set_exception(error)


def model_ahead(spec: RunSpec, store: Store) -> Ahead[ModelFiles | None]:
    """The base model, weights and all, on its way to the disk; None where the run is published already."""

    def fetch() -> ModelFiles | None:
        published = store.head(MANIFEST_FILE) is not None
        return None if published else fetch_model(spec, Path(spec.scratch_directory), weights=True)

    return Ahead(fetch)


def leave_out_bitsandbytes() -> None:
    """Let nobody import it: PEFT does so wherever it is installed, which takes 2 s and 200 MiB.

    None in `sys.modules` is how Python marks a module as not to be found.
    """
    if BITSANDBYTES not in sys.modules:
        sys.modules[BITSANDBYTES] = None  # type: ignore[assignment]


def needs_bitsandbytes(training: TrainingSpec) -> bool:
    """Whether the run stores weights or the optimizer's state in fewer bits."""
    in_8_bits = training.hyperparameters.optimizer in (Optimizer.ADAMW8BIT, Optimizer.PAGED_ADAMW8BIT)
    return in_8_bits or training.method.quantization is not Quantization.NONE
