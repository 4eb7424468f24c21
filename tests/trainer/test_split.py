"""Rule S of the split."""

import numpy as np
import pytest
from finetune_api.sources import Split
from finetune_trainer.split import Part, assign_parts, part_sizes
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("rows", "train", "dev", "expected"),
    [
        (10, 80, 20, (8, 2)),
        (10, 60, 20, (6, 2)),
        (7, 80, 20, (6, 1)),
        (5, 50, 50, (3, 2)),
        (5, 30, 30, (2, 1)),
        (1319, 33.3, 66.7, (439, 880)),
        (100, 0.5, 0, (1, 0)),
        (99, 0.5, 0, (0, 0)),
        (2, 80, 20, (2, 0)),
        (3, 80, 20, (2, 1)),
        (10, 100, 0, (10, 0)),
    ],
)
def test_sizes_round_half_up_in_exact_decimals(rows: int, train: float, dev: float, expected: tuple[int, int]) -> None:
    assert part_sizes(rows, Split(train_percentage=train, dev_percentage=dev)) == expected


@pytest.mark.parametrize(("seed", "order"), [(42, [0, 8, 9, 1, 3, 7, 4, 2, 6, 5]), (0, [8, 3, 7, 4, 9, 1, 2, 6, 0, 5])])
def test_rows_are_ranked_by_the_digest_of_seed_name_and_number(seed: int, order: list[int]) -> None:
    for size in range(1, 10):
        parts = assign_parts(10, "faq", Split(train_percentage=10 * size, seed=seed))
        assert set(np.flatnonzero(parts == Part.TRAIN)) == set(order[:size])


def test_train_comes_first_in_the_ranking_then_dev_then_unused() -> None:
    parts = assign_parts(10, "faq", Split(train_percentage=50, dev_percentage=30))
    order = [0, 8, 9, 1, 3, 7, 4, 2, 6, 5]
    assert [int(parts[number]) for number in order] == [Part.TRAIN] * 5 + [Part.DEV] * 3 + [Part.UNUSED] * 2


@given(
    rows=st.integers(0, 300),
    train=st.decimals(0, 100, places=2).filter(bool),
    share=st.decimals(0, 1, places=2),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_row_is_in_exactly_one_part(rows: int, train: float, share: float, seed: int) -> None:
    split = Split(train_percentage=float(train), dev_percentage=float((100 - train) * share), seed=seed)
    train_rows, dev_rows = part_sizes(rows, split)
    parts = assign_parts(rows, "any", split)
    assert train_rows >= 0
    assert dev_rows >= 0
    assert np.count_nonzero(parts == Part.TRAIN) == train_rows
    assert np.count_nonzero(parts == Part.DEV) == dev_rows
    assert np.count_nonzero(parts == Part.UNUSED) == rows - train_rows - dev_rows
