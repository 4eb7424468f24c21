"""TensorBoard: one file of events, written with its own writer, which needs neither torch nor TensorFlow."""

import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from finetune_trainer.tracking import Numbers


class TensorBoardTracker:
    """Scalars in `folder`, for `tensorboard --logdir`."""

    def __init__(self, folder: Path) -> None:
        self._writer = EventFileWriter(str(folder))

    def log(self, step: int, numbers: Numbers) -> None:
        """One event for all numbers."""
        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
