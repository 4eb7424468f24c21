"""Floating-point operations of training, by the usual rule: 2 for each weight and token, forward; as many again for
each gradient. Attention's own products, which grow with the square of a row's length, are left out. Pure.

Source: Kaplan et al. 2020, arXiv 2001.08361, section 2.1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune_trainer.pack import epoch_order
from finetune_trainer.prepared import Offsets

Json = dict[str, Any]


def operations_per_token(parameters: int, trained: int) -> int:
    """Forward and backward through every weight, and a gradient of each weight that is trained."""
    return 4 * parameters + 2 * trained


def tokens_until(lengths: Offsets, effective_batch: int, seed: int, steps: Sequence[int]) -> list[int]:
    """Tokens trained on after each of `steps` (ascending) optimizer steps; padding does not count."""
    per_epoch = -(-len(lengths) // effective_batch)
    found, whole = [], int(lengths.sum())
    epoch_sums: dict[int, Any] = {}
    for step in steps:
        epoch, at = divmod(step, per_epoch)
        if at and epoch not in epoch_sums:
            epoch_sums = {epoch: np.cumsum(lengths[np.asarray(epoch_order(len(lengths), seed, epoch))])}
        found.append(epoch * whole + (int(epoch_sums[epoch][at * effective_batch - 1]) if at else 0))
    return found


def with_flops(rows: Sequence[Json], tokens: Sequence[int], per_token: int) -> list[Json]:
    """The training log with the operations done so far in each row."""
    return [row | {"flops": per_token * count} for row, count in zip(rows, tokens, strict=True)]
