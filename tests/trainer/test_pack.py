"""Rows of a step into micro-batches."""

from itertools import chain

import numpy as np
import pytest
from finetune_trainer.pack import epoch_order, micro_batches, packed_batch, padded_batch, step_rows

from tests.trainer.decoders import some_rows


def test_a_packed_batch_has_every_token_once_and_each_row_counts_from_zero() -> None:
    rows = some_rows((5, 3))
    batch = packed_batch(rows, [0, 1])
    assert batch.input_ids[0].tolist() == rows.ids.tolist()
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.layout is not None
    assert batch.layout.lengths == (5, 3)
    assert batch.layout.offsets.tolist() == [0, 5, 8]
    assert batch.attention_mask is None


@pytest.mark.parametrize("make", [packed_batch, padded_batch])
def test_positions_point_one_before_each_supervised_id(make) -> None:  # type: ignore[no-untyped-def]
    rows = some_rows((5, 3), prompt=2)
    batch = make(rows, [0, 1])
    after = batch.input_ids.flatten()[batch.positions + 1]
    assert after.tolist() == batch.targets.tolist()
    assert batch.targets.tolist() == rows.ids[rows.supervised].tolist()
    assert batch.supervised == int(rows.supervised.sum())
    assert batch.tokens == 8


def test_padding_is_masked_and_never_supervised_even_where_it_looks_like_an_end_token() -> None:
    rows = some_rows((5, 3), prompt=1)
    batch = padded_batch(rows, [0, 1])
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.positions.max() < 5 + 2


def test_micro_batches_hold_each_chosen_row_once_and_like_lengths_together() -> None:
    rows = some_rows((9, 4, 12, 4, 7))
    batches = micro_batches(rows, range(5), rows_per_batch=2, packed=True)
    assert [batch.layout.lengths for batch in batches if batch.layout] == [(12, 9), (7, 4), (4,)]


@pytest.mark.parametrize(
    ("packed", "limit", "parts"),
    [
        (True, 21, [(12, 9), (7, 4, 4)]),
        (True, 12, [(12,), (9,), (7, 4), (4,)]),
        (True, 5, [(12,), (9,), (7,), (4,), (4,)]),
        (False, 24, [(12, 9), (7, 4, 4)]),
        (False, 21, [(12,), (9, 7), (4, 4)]),
        (False, 18, [(12,), (9, 7), (4, 4)]),
    ],
)
def test_a_micro_batch_has_at_most_so_many_tokens_padding_included(
    packed: bool, limit: int, parts: list[tuple[int, ...]]
) -> None:
    rows = some_rows((9, 4, 12, 4, 7))
    batches = micro_batches(rows, range(5), rows_per_batch=3, packed=packed, tokens_per_batch=limit)
    assert [batch.tokens for batch in batches] == [sum(part) for part in parts]
    assert [batch.rows for batch in batches] == [len(part) for part in parts]
    assert all(batch.input_ids.numel() <= max(limit, 12) for batch in batches)


def test_an_epochs_order_is_a_permutation_of_its_own() -> None:
    first, second = epoch_order(100, seed=1, epoch=0), epoch_order(100, seed=1, epoch=1)
    assert sorted(first) == sorted(second) == list(range(100))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, epoch_order(100, seed=1, epoch=0))
    assert not np.array_equal(first, epoch_order(100, seed=2, epoch=0))


def test_each_epoch_is_cut_into_steps_the_last_of_which_may_be_short() -> None:
    steps = [step_rows(10, effective_batch=4, seed=0, step=step) for step in range(6)]
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    assert sorted(chain(*steps[:3])) == sorted(chain(*steps[3:])) == list(range(10))
