"""The best dev loss so far, and how long training goes on without a better one. Loads without torch."""

from dataclasses import asdict, dataclass
from typing import Any

from finetune_api.progress import BestStatus


@dataclass
class Patience:
    """Told of every dev loss. The best is the lowest seen; early stopping asks for more than that."""

    best_step: int | None = None
    best_loss: float = float("inf")
    stale: int = 0
    """Evaluations in a row that did not lower the best dev loss by more than `min_delta`."""

    def measured(self, step: int, loss: float, min_delta: float) -> None:
        """The dev rows have `loss` after `step`."""
        self.stale = 0 if loss < self.best_loss - min_delta else self.stale + 1
        if loss < self.best_loss:
            self.best_step, self.best_loss = step, loss

    @property
    def best(self) -> BestStatus | None:
        """As the status shows it; None before the first evaluation."""
        return None if self.best_step is None else BestStatus(step=self.best_step, validation_loss=self.best_loss)

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)
