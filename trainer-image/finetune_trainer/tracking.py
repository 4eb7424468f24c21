"""`spec.tracking`: the curve and the scores to TensorBoard, MLflow or Weights & Biases.

Each sink works in a thread of its own, since a server may be slow or away; one that fails is warned about once and
then left alone. Tracking never fails a run, and never holds its end up for more than CLOSE_SECONDS for each sink. No
tracker is imported before its name is read in the spec. Loads without torch.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Any, Protocol, Self

from finetune_api.names import TRACKING_FOLDER
from finetune_api.output import Sink
from finetune_api.progress import HistoryRow, Metrics
from finetune_api.run import RunResult, RunSpec
from finetune_api.words import one_line, shortened

from finetune_trainer.errors import RunError
from finetune_trainer.publish import WRITER_LENGTH
from finetune_trainer.store import Store, uri_of

CLOSE_SECONDS = 30.0
"""How long a sink may take to finish when the run is over."""

HURRIED_SECONDS = 3.0
"""The same after a failure or SIGTERM: the pod's grace period is for other things."""

Numbers = Mapping[str, float]


class Tracker(Protocol):
    """One library. Each method may raise anything."""

    def log(self, step: int, numbers: Numbers) -> None:
        """Numbers of one optimizer step, by name."""

    def close(self) -> None:
        """Nothing more comes."""


def open_tracker(sink: Sink, spec: RunSpec, folder: Path) -> Tracker:
    """Import the library and begin a run in it; what it writes to disk lies in `folder`."""
    if sink is Sink.TENSORBOARD:
        from finetune_trainer.tracking_tensorboard import TensorBoardTracker

        return TensorBoardTracker(folder)
    if sink is Sink.MLFLOW:
        from finetune_trainer.tracking_mlflow import MlflowTracker

        return MlflowTracker(spec, folder)
    from finetune_trainer.tracking_wandb import WandbTracker

    return WandbTracker(spec, folder)


class Worker(threading.Thread):
    """One sink: takes numbers at once, hands them on in its own time."""

    def __init__(self, sink: Sink, make: Callable[[], Tracker], warn: Callable[[str], None]) -> None:
        super().__init__(name=f"tracking-{sink}", daemon=True)
        self.sink = sink
        self._make = make
        self._warn = warn
        self._news: queue.SimpleQueue[tuple[int, Numbers] | None] = queue.SimpleQueue()

    def log(self, step: int, numbers: Numbers) -> None:
        """Say it when there is time."""
        self._news.put((step, numbers))

    def finish(self, seconds: float) -> None:
        """Wait until everything is said, but no longer than this."""
        self._news.put(None)
        self.join(seconds)
        if self.is_alive():
            self._warn(f"tracking: {self.sink} has not finished after {seconds:g} s and is left behind")

    def run(self) -> None:
        """Until there is nothing more to say, or the sink fails."""
        try:
            tracker = self._make()
            while (news := self._news.get()) is not None:
                tracker.log(*news)
            tracker.close()
        except Exception as error:  # noqa: BLE001 (three libraries; whatever they raise, the run goes on)
            why = shortened(one_line(f"{type(error).__name__}: {error}"), 300)
            self._warn(f"tracking: {self.sink} failed and gets nothing more: {why}")


class Tracking:
    """All sinks of a run. Use as a context manager: their files go to the store also when the run fails."""

    def __init__(
        self,
        spec: RunSpec,
        store: Store,
        writer: str,
        warn: Callable[[str], None],
        opened: Callable[[Sink, RunSpec, Path], Tracker] = open_tracker,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self._store, self._warn, self._close_seconds = store, warn, close_seconds
        self._folder = Path(spec.scratch_directory) / TRACKING_FOLDER
        self._key = f"{TRACKING_FOLDER}/{spec.attempt}-{writer[:WRITER_LENGTH]}"
        self._workers = [self._worker(sink, spec, opened) for sink in spec.training.tracking.sinks]
        self._step = 0

    def __enter__(self) -> Self:
        rmtree(self._folder, ignore_errors=True)
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        seconds = self._close_seconds if error is None else min(self._close_seconds, HURRIED_SECONDS)
        for worker in self._workers:
            worker.finish(seconds)
        self._upload()

    def row(self, row: HistoryRow, metrics: Metrics) -> None:
        """One more point of the curve."""
        trained = row.training_loss is not None
        numbers = {
            "train/loss": row.training_loss,
            "train/learning_rate": metrics.learning_rate if trained else None,
            "train/grad_norm": metrics.grad_norm if trained else None,
            "eval/loss": row.validation_loss,
            "train/epoch": row.epoch,
        }
        self._log(row.step, numbers)

    def result(self, result: RunResult) -> None:
        """The scores of base and tuned model, at the last step."""
        measured = result.evaluation.measured() if result.evaluation else {}
        scores = {
            f"final/{metric}/{form}": getattr(found, form)
            for metric, found in measured.items()
            for form in ("base", "tuned", "merged")
        }
        self._log(self._step, scores)

    def _log(self, step: int, numbers: Mapping[str, float | None]) -> None:
        self._step = max(self._step, step)
        known = {name: number for name, number in numbers.items() if number is not None}
        for worker in self._workers if known else []:
            worker.log(step, known)

    def _worker(self, sink: Sink, spec: RunSpec, opened: Callable[[Sink, RunSpec, Path], Tracker]) -> Worker:
        folder = self._folder / sink.value
        return Worker(sink, lambda: opened(sink, spec, folder), self._warn)

    def _upload(self) -> None:
        """What trackers wrote to disk; a symbolic link or a store that is away is no reason to fail."""
        paths = [path for path in sorted(self._folder.rglob("*")) if path.is_file() and not path.is_symlink()]
        try:
            for path in paths:
                self._store.put_file(f"{self._key}/{path.relative_to(self._folder).as_posix()}", path)
        except (RunError, OSError) as error:
            self._warn(f"tracking: files do not reach {uri_of(self._store, self._key)}: {error}")


def settings_of(spec: RunSpec) -> dict[str, Any]:
    """What was asked for, by dotted name: what people compare runs by."""
    training = spec.training.to_json()
    asked = {part: training[part] for part in ("method", "hyperparameters")}
    return {"model": training["model"].get("uri", ""), **_flat(asked)}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return found
