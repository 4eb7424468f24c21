"""The training log counts operations over the very tokens that were trained."""

import numpy as np
import pytest
from finetune_trainer.flops import operations_per_token, tokens_until, with_flops
from finetune_trainer.pack import step_rows

LENGTHS = np.array([9, 4, 12, 4, 7, 6, 5, 8, 3, 10], np.int64)


@pytest.mark.parametrize("batch", [1, 3, 4, 10])
def test_tokens_are_those_of_the_rows_of_each_step(batch: int) -> None:
    steps = [1, 2, 5, 7, 12]
    rows = [step_rows(len(LENGTHS), batch, 42, step) for step in range(max(steps))]
    wanted = [sum(int(LENGTHS[row]) for step in rows[:until] for row in step) for until in steps]
    assert tokens_until(LENGTHS, batch, 42, steps) == wanted


def test_a_full_run_does_six_operations_for_each_weight_and_token_and_an_adapter_four() -> None:
    assert operations_per_token(1000, 1000) == 6000
    assert operations_per_token(1000, 10) == 4020
    assert with_flops([{"step": 1}], [7], 6000) == [{"step": 1, "flops": 42000}]
