"""Rule E and acceptance case 14: perplexity."""

import math

import pytest
import torch
from finetune_trainer.evaluate import Likelihood, likelihood
from finetune_trainer.loss import LossModel
from finetune_trainer.pack import micro_batches

from tests.trainer.decoders import PACKED, VOCABULARY, a_decoder, packed_rows, some_rows


def test_a_head_of_zeros_has_the_perplexity_of_the_vocabulary() -> None:
    model = a_decoder()
    torch.nn.init.zeros_(model.lm_head.weight)
    found = likelihood(LossModel(model, True), micro_batches(some_rows(), range(5), 2, packed=False))
    assert found.perplexity == pytest.approx(VOCABULARY)


def test_perplexity_is_the_exponential_of_the_mean_over_tokens() -> None:
    assert Likelihood(6.0, 4).perplexity == pytest.approx(4.4817, abs=1e-4)


def test_a_perplexity_beyond_floats_stays_a_number() -> None:
    assert math.isfinite(Likelihood(1e6, 1).perplexity)


def test_the_order_of_rows_does_not_change_perplexity() -> None:
    rows, loss_model = some_rows(), LossModel(a_decoder(), True)
    orders = ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1])
    found = [likelihood(loss_model, micro_batches(rows, order, 2, packed=False)).perplexity for order in orders]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("family", PACKED)
def test_batch_size_padding_and_packing_do_not_change_perplexity(family: str) -> None:
    model, rows = a_decoder(family), some_rows()
    loss_model = LossModel(model, True)
    found = [likelihood(loss_model, micro_batches(rows, range(5), size, packed=False)).perplexity for size in (1, 4)]
    with packed_rows(model):
        found += [likelihood(loss_model, micro_batches(rows, range(5), n, packed=True)).perplexity for n in (1, 4)]
    assert found == pytest.approx([found[0]] * 4, rel=1e-4)


def test_measuring_leaves_no_gradient_and_the_mode_as_it_was() -> None:
    model = LossModel(a_decoder(), True).train()
    likelihood(model, micro_batches(some_rows(), range(5), 2, packed=False))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
