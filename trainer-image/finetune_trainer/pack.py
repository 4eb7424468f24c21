"""The rows of one optimizer step as micro-batches: packed end to end, or padded.

Labels never travel as -100: a batch lists the flat positions whose hidden state predicts a supervised id, and these
ids. So the head runs on those positions alone, and the next-token shift is done here, once.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from finetune_trainer.batch import Batch, RowLayout


class Rows(Protocol):
    """Rows laid end to end: row i is `[offsets[i], offsets[i + 1])`; a row's first id is never supervised."""

    @property
    def ids(self) -> npt.NDArray[np.int32]: ...
    @property
    def supervised(self) -> npt.NDArray[np.bool_]: ...
    @property
    def offsets(self) -> npt.NDArray[np.int64]: ...


def micro_batches(
    rows: Rows,
    chosen: Sequence[int],
    rows_per_batch: int,
    packed: bool,
    tokens_per_batch: int | None = None,
    border: int | None = None,
    rank: int = 0,
    size: int = 1,
) -> list[Batch]:
    """The `chosen` rows in batches of at most `rows_per_batch` rows, like lengths together.

    A batch has at most `tokens_per_batch` tokens, padding included; a row that is longer is a batch of its own. Rows of
    more than `border` tokens, where there is one, share no batch with others. They are those of one of `size`
    processes: as many as any of them has, the missing ones without weight.
    """
    lengths = [int(rows.offsets[row + 1] - rows.offsets[row]) for row in chosen]
    shares = [[chosen[at] for at in share] for share in share_out(lengths, size)]
    groups = [_grouped(rows, share, rows_per_batch, packed, tokens_per_batch, border) for share in shares]
    make = packed_batch if packed else padded_batch
    batches = [make(rows, group) for group in groups[rank]]
    missing = max(map(len, groups)) - len(batches)
    if missing:
        shortest = chosen[lengths.index(min(lengths))]
        batches += [make(rows, [shortest]).without_weight()] * missing
    return batches


def _grouped(
    rows: Rows,
    chosen: Sequence[int],
    rows_per_batch: int,
    packed: bool,
    tokens_per_batch: int | None,
    border: int | None,
) -> list[list[int]]:
    lengths = {row: int(rows.offsets[row + 1] - rows.offsets[row]) for row in chosen}
    ordered = sorted(chosen, key=lambda row: -lengths[row])
    most_tokens = tokens_per_batch or sum(lengths.values()) * rows_per_batch
    sides = groupby(ordered, key=lambda row: border is not None and lengths[row] > border)
    return [part for _, side in sides for part in _parts(list(side), lengths, rows_per_batch, most_tokens, packed)]


def _parts(
    ordered: Sequence[int], lengths: Mapping[int, int], most_rows: int, most_tokens: int, packed: bool
) -> Iterator[list[int]]:
    """Rows, longest first, cut into parts."""
    part: list[int] = []
    tokens = 0
    for row in ordered:
        # Where rows are padded, each takes as much as the first of its part.
        length = lengths[row] if packed or not part else lengths[part[0]]
        if part and (len(part) == most_rows or tokens + length > most_tokens):
            yield part
            part, tokens, length = [], 0, lengths[row]
        part.append(row)
        tokens += length
    if part:
        yield part


def share_out(sizes: Sequence[int], members: int) -> list[list[int]]:
    """Positions of `sizes` for each member: sums nearly even, and nobody has more than his part in number, rounded up.

    The largest first, each to the member that has the least so far.
    """
    most = -(-len(sizes) // members)
    shares: list[list[int]] = [[] for _ in range(members)]
    loads = [(0, member) for member in range(members)]
    for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        load, member = heapq.heappop(loads)
        shares[member].append(at)
        if len(shares[member]) < most:
            heapq.heappush(loads, (load + sizes[at], member))
    return shares


def packed_batch(rows: Rows, chosen: Sequence[int]) -> Batch:
    """The `chosen` rows end to end in one line, longest first as given. No padding, no mask."""
    parts = [slice(int(rows.offsets[row]), int(rows.offsets[row + 1])) for row in chosen]
    lengths = tuple(part.stop - part.start for part in parts)
    ids = np.concatenate([rows.ids[part] for part in parts]).astype(np.int64)
    predicted = np.flatnonzero(np.concatenate([rows.supervised[part] for part in parts]))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    counts = np.concatenate([np.arange(length) for length in lengths])
    return Batch(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(counts)[None],
        attention_mask=None,
        layout=RowLayout(lengths, torch.from_numpy(offsets)),
        positions=torch.from_numpy(predicted - 1),
        targets=torch.from_numpy(ids[predicted]),
        tokens=len(ids),
        supervised=len(predicted),
    )


def padded_batch(rows: Rows, chosen: Sequence[int]) -> Batch:
    """The `chosen` rows one below the other, padded on the right.

    What fills the padding is never seen: it lies behind the causal mask, and no position there is supervised.
    """
    parts = [slice(int(rows.offsets[row]), int(rows.offsets[row + 1])) for row in chosen]
    longest = max(part.stop - part.start for part in parts)
    ids = np.zeros((len(parts), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    supervised = np.zeros(ids.shape, dtype=np.bool_)
    for line, part in enumerate(parts):
        length = part.stop - part.start
        ids[line, :length] = rows.ids[part]
        mask[line, :length] = 1
        supervised[line, :length] = rows.supervised[part]
    predicted = np.flatnonzero(supervised)
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.arange(longest).expand(len(parts), longest),
        attention_mask=torch.from_numpy(mask),
        layout=None,
        positions=torch.from_numpy(predicted - 1),
        targets=torch.from_numpy(ids.reshape(-1)[predicted]),
        tokens=int(mask.sum()),
        supervised=len(predicted),
    )


@lru_cache(maxsize=2)
def epoch_order(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of the train rows in one epoch: a permutation that depends on nothing but its arguments.

    Kept, since every step of an epoch asks for it: ten million rows take a quarter of a second. Not to be written to.
    """
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    order.flags.writeable = False
    return order


def step_rows(rows: int, effective_batch: int, seed: int, step: int) -> list[int]:
    """The rows of optimizer step `step` (from 0): each epoch's order is cut into steps, the last one may be short."""
    steps_per_epoch = -(-rows // effective_batch)
    epoch, at = divmod(step, steps_per_epoch)
    order = epoch_order(rows, seed, epoch)
    return [int(row) for row in order[at * effective_batch : (at + 1) * effective_batch]]
