"""What training has to show: the loss since the last row, the curve so far, and how fast it goes."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from finetune_api.progress import HistoryRow, Metrics, Progress
from torch import Tensor

from finetune_trainer.parallel import Team


@dataclass
class Interval:
    """What was trained since the last row of the curve; sums stay on the device."""

    loss: Tensor | None = None
    """Of this rank."""
    supervised: int = 0
    """Tokens, of all ranks."""
    norm: Tensor | None = None
    """Gradient norm of the newest step, before clipping."""
    rate: float = 0.0
    """Learning rate of the newest step."""

    def add(self, loss: Tensor) -> None:
        """The summed loss of one of this rank's micro-batches."""
        self.loss = loss if self.loss is None else self.loss + loss

    def stepped(self, supervised: int, norm: Tensor, rate: float) -> None:
        """One optimizer step is done, over so many tokens."""
        self.supervised += supervised
        self.norm, self.rate = norm, rate

    def mean(self, team: Team) -> float:
        """Loss per token over all ranks. Here the host waits for the device."""
        total = self._total(team)
        return math.nan if total is None else total / self.supervised

    @property
    def gradient_norm(self) -> float:
        """Of the newest step. Here the host waits for the device."""
        return float(self.norm) if self.norm is not None else math.nan

    def state(self, team: Team) -> dict[str, Any]:
        """As JSON, of all ranks; a float holds every fp32 value exactly."""
        norm = None if self.norm is None else float(self.norm)
        return {"loss": self._total(team), "norm": norm, "supervised": self.supervised, "rate": self.rate}

    @classmethod
    def of(cls, state: dict[str, Any], device: torch.device, team: Team) -> "Interval":
        """What `state` gave: its loss goes to the first rank, so that it counts once."""
        loss, norm = (
            None if state[name] is None else torch.tensor(state[name], dtype=torch.float32, device=device)
            for name in ("loss", "norm")
        )
        if loss is not None and not team.is_first:
            loss.zero_()
        return cls(loss, state["supervised"], norm, state["rate"])

    def _total(self, team: Team) -> float | None:
        return None if self.loss is None else float(team.sum(self.loss.clone()))


@dataclass
class Curve:
    """The whole training log, and the newest numbers."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    progress: Progress = field(default_factory=Progress)

    def measured(self, **newest: float) -> None:
        """Take over the newest numbers; the others stay."""
        self.metrics = Metrics(**(self.metrics.model_dump() | newest))

    @property
    def history(self) -> list[HistoryRow]:
        """The rows as the status shows them."""
        return [HistoryRow.model_validate(row) for row in self.rows]

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {"rows": list(self.rows), "metrics": self.metrics.to_json(), "progress": self.progress.to_json()}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Curve":
        """What `state` gave."""
        metrics, progress = Metrics.model_validate(state["metrics"]), Progress.model_validate(state["progress"])
        return cls(state["rows"], metrics, progress)


@dataclass
class Clock:
    """Tokens per second of training in this attempt, evaluation left out."""

    first: int
    """Steps that were done when it started."""
    tokens: int = 0
    paused: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time spent training so far."""
        return max(time.monotonic() - self.started - self.paused, 1e-9)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time that is no training."""
        began = time.monotonic()
        yield
        self.paused += time.monotonic() - began

    def progress(self, step: int, total: int, epoch: float) -> Progress:
        """How far training is after `step`. Nothing is known of its speed before the first step of this attempt."""
        done = step - self.first
        return Progress(
            percent=100 * step // total,
            step=step,
            total_steps=total,
            epoch=epoch,
            eta_seconds=round(self.seconds / done * (total - step)) if done else None,
            tokens_per_second=round(self.tokens / self.seconds, 1) if done else None,
        )
