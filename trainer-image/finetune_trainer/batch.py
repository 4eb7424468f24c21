"""A micro-batch on a device: what packing makes, attention and loss read."""

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor


class Packing(StrEnum):
    """How rows that lie end to end are kept apart."""

    NONE = "none"
    """Not at all: they are padded instead."""
    ROWS = "rows"
    """Attention knows where they lie."""
    BLOCKS = "blocks"
    """By a mask."""


@dataclass(frozen=True)
class RowLayout:
    """Where the rows of a packed batch lie; what row attention needs."""

    lengths: tuple[int, ...]
    """Tokens per row, longest first, so that rows of equal length are neighbours."""
    offsets: Tensor
    """int32 (rows + 1): where each row starts, and the end of the last; on the batch's device."""

    @property
    def longest(self) -> int:
        return self.lengths[0]


@dataclass(frozen=True)
class Batch:
    """One micro-batch: (1, tokens) when packed, (rows, longest) when padded."""

    input_ids: Tensor
    """int64 (b, t)."""
    position_ids: Tensor
    """int64 (b, t): each row counts from 0."""
    attention_mask: Tensor | None
    """int64 (b, t), 1 = token; None when packed."""
    layout: RowLayout | None
    """None when padded."""
    positions: Tensor
    """int64 (n): flat positions in b·t whose next id is supervised."""
    targets: Tensor
    """int64 (n): those next ids."""
    tokens: int
    """Tokens without padding."""
    supervised: int
    """n, known without asking the device."""

    @property
    def rows(self) -> int:
        """Rows in it."""
        return len(self.layout.lengths) if self.layout else len(self.input_ids)

    def without_weight(self) -> "Batch":
        """The same tokens with nothing to learn: what a process computes that only keeps step with the others."""
        return replace(self, positions=self.positions[:0], targets=self.targets[:0], tokens=0, supervised=0)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`, copied without waiting for it."""
        if device.type == "cpu":
            return self
        layout = self.layout and replace(self.layout, offsets=_moved(self.layout.offsets, device))
        return replace(
            self,
            input_ids=_moved(self.input_ids, device),
            position_ids=_moved(self.position_ids, device),
            attention_mask=None if self.attention_mask is None else _moved(self.attention_mask, device),
            layout=layout,
            positions=_moved(self.positions, device),
            targets=_moved(self.targets, device),
        )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True)
