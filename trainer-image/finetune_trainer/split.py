"""Which part of the split a row belongs to. Depends on seed, dataset name and row number alone.

Adding or reordering other datasets, another tokenizer or another length limit changes nothing.
"""

from collections.abc import Callable
from decimal import ROUND_FLOOR, Decimal
from enum import IntEnum
from hashlib import sha256

import numpy as np
import numpy.typing as npt
from finetune_api.sources import Split


class Part(IntEnum):
    """A part of the split, as it stands in the array of `assign_parts`."""

    UNUSED = 0
    EMPTY = 1
    """Dropped, since nothing would be learned."""
    DUPLICATE = 2
    """Dropped, since a train row repeats a dev or test row."""
    TRAIN = 3
    DEV = 4
    TEST = 5


KEPT_PARTS = (Part.TRAIN, Part.DEV, Part.TEST)


Parts = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


def part_sizes(rows: int, split: Split) -> tuple[int, int]:
    """Train and dev rows of `rows`, rounded half up in exact decimals on the percentages as written."""
    train = _share(rows, _decimal(split.train_percentage))
    both = _share(rows, _decimal(split.train_percentage) + _decimal(split.dev_percentage))
    return train, min(both, rows) - train


def assign_parts(rows: int, dataset: str, split: Split) -> Parts:
    """(rows,) the Part of each row of one `train` dataset, by row number.

    Rows are ranked by the SHA-256 hex digest of `seed:name:number`, ascending: first train, then dev, then unused.
    """
    train, dev = part_sizes(rows, split)
    if train == rows:
        return np.full(rows, Part.TRAIN, np.uint8)
    prefix = f"{split.seed}:{dataset}:".encode()

    def digest(number: int) -> bytes:
        return sha256(prefix + str(number).encode()).digest()

    # Eight bytes of each digest, so that millions of rows fit; the whole digest decides between equals.
    keys = np.fromiter((int.from_bytes(digest(number)[:8]) for number in range(rows)), np.uint64, rows)
    parts = np.full(rows, Part.UNUSED, np.uint8)
    parts[_smallest(keys, train + dev, digest)] = Part.DEV
    parts[_smallest(keys, train, digest)] = Part.TRAIN
    return parts


def _smallest(keys: Keys, count: int, digest: Callable[[int], bytes]) -> Mask:
    """(rows,) which rows have the `count` smallest keys. No sorting: that would need several times the memory."""
    if count == 0:
        return np.zeros(len(keys), np.bool_)
    bound = np.partition(keys, count - 1)[count - 1]
    chosen: Mask = keys < bound
    equals = sorted(np.flatnonzero(keys == bound).tolist(), key=digest)
    chosen[equals[: count - int(np.count_nonzero(chosen))]] = True
    return chosen


def _decimal(number: float) -> Decimal:
    """The number as it was written: the shortest text that means this float."""
    return Decimal(repr(number))


def _share(rows: int, percentage: Decimal) -> int:
    return int((rows * percentage / 100 + Decimal("0.5")).to_integral_value(ROUND_FLOOR))
