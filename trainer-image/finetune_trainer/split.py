"""Which part of the split a row belongs to. Depends on seed, dataset name and row number alone.

Adding or reordering other datasets, another tokenizer or another length limit changes nothing.
"""

from decimal import ROUND_FLOOR, Decimal
from enum import IntEnum
from hashlib import sha256

import numpy as np
import numpy.typing as npt
from finetune_api.resource import Split


class Part(IntEnum):
    """A part of the split, as it stands in the array of `assign_parts`."""

    UNUSED = 0
    DROPPED = 1
    TRAIN = 2
    DEV = 3
    TEST = 4


KEPT_PARTS = (Part.TRAIN, Part.DEV, Part.TEST)


Parts = npt.NDArray[np.uint8]


def ranking(seed: int, dataset: str, rows: int) -> list[int]:
    """Row numbers in the order of the split: by the SHA-256 hex digest of `seed:name:number`, ascending."""
    prefix = f"{seed}:{dataset}:".encode()
    return sorted(range(rows), key=lambda number: sha256(prefix + str(number).encode()).digest())


def part_sizes(rows: int, split: Split) -> tuple[int, int]:
    """Train and dev rows of `rows`, rounded half up in exact decimals on the percentages as written."""
    train = _share(rows, _decimal(split.train_percentage))
    both = _share(rows, _decimal(split.train_percentage) + _decimal(split.dev_percentage))
    return train, min(both, rows) - train


def assign_parts(rows: int, dataset: str, split: Split) -> Parts:
    """(rows,) the Part of each row of one `train` dataset, by row number."""
    train, dev = part_sizes(rows, split)
    order = ranking(split.seed, dataset, rows)
    parts = np.full(rows, Part.UNUSED, np.uint8)
    parts[order[:train]] = Part.TRAIN
    parts[order[train : train + dev]] = Part.DEV
    return parts


def _decimal(number: float) -> Decimal:
    """The number as it was written: the shortest text that means this float."""
    return Decimal(repr(number))


def _share(rows: int, percentage: Decimal) -> int:
    return int((rows * percentage / 100 + Decimal("0.5")).to_integral_value(ROUND_FLOOR))
