"""Rule E and acceptance cases 14 and 15: perplexity and generation."""

import math

import pytest
import torch
from finetune_api.resource import Generation
from finetune_trainer.attention import rows_attended
from finetune_trainer.evaluate import Likelihood, generate, generation_settings, likelihood
from finetune_trainer.loss import LossModel
from finetune_trainer.pack import micro_batches

from tests.trainer.decoders import FAMILIES, VOCABULARY, a_decoder, some_rows

PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13], [14, 15, 16, 17, 18, 19, 20]]


def decoded(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def greedy(length: int = 8, ends: tuple[int, ...] = (2,)):  # type: ignore[no-untyped-def]
    return generation_settings(Generation(max_new_tokens=length), ends, 0)


def test_a_head_of_zeros_has_the_perplexity_of_the_vocabulary() -> None:
    model = a_decoder()
    torch.nn.init.zeros_(model.lm_head.weight)
    found = likelihood(LossModel(model, True), micro_batches(some_rows(), range(5), 2, packed=False))
    assert found.perplexity == pytest.approx(VOCABULARY)


def test_perplexity_is_the_exponential_of_the_mean_over_tokens() -> None:
    assert Likelihood(6.0, 4).perplexity == pytest.approx(4.4817, abs=1e-4)


def test_a_perplexity_beyond_floats_stays_a_number() -> None:
    assert math.isfinite(Likelihood(1e6, 1).perplexity)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_size_padding_and_packing_do_not_change_perplexity(family: str) -> None:
    model, rows = a_decoder(family), some_rows()
    loss_model = LossModel(model, True)
    found = [likelihood(loss_model, micro_batches(rows, range(5), size, packed=False)).perplexity for size in (1, 4)]
    with rows_attended(model):
        found += [likelihood(loss_model, micro_batches(rows, range(5), n, packed=True)).perplexity for n in (1, 4)]
    assert found == pytest.approx([found[0]] * 4, rel=1e-4)


def test_measuring_leaves_no_gradient_and_the_mode_as_it_was() -> None:
    model = LossModel(a_decoder(), True).train()
    likelihood(model, micro_batches(some_rows(), range(5), 2, packed=False))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_in_a_batch_do_not_change_a_greedy_result(family: str) -> None:
    model = a_decoder(family)
    together = generate(model, PROMPTS, greedy(), 4, decoded)
    alone = generate(model, PROMPTS, greedy(), 1, decoded)
    assert together == alone
    assert len(set(together)) > 1


def test_generation_is_the_plain_greedy_continuation_of_the_prompt() -> None:
    model = a_decoder()
    [text] = generate(model, [PROMPTS[0]], greedy(3, ends=(2,)), 1, decoded)
    ids = list(PROMPTS[0])
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert text == decoded(ids[len(PROMPTS[0]) :])


def test_generation_stops_at_any_end_token_and_leaves_it_out() -> None:
    model = a_decoder()
    [whole] = generate(model, [PROMPTS[0]], greedy(8), 1, decoded)
    third = int(whole.split()[2])
    expected = whole.split()[: whole.split().index(str(third))]
    [cut] = generate(model, [PROMPTS[0]], greedy(8, ends=(2, third)), 1, decoded)
    assert cut.split() == expected


def test_the_bases_own_generation_defaults_have_no_say() -> None:
    model = a_decoder()
    plain = generate(model, PROMPTS, greedy(), 4, decoded)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.do_sample = True
    assert generate(model, PROMPTS, greedy(), 4, decoded) == plain
    assert model.generation_config.repetition_penalty == 50.0


def test_sampling_differs_from_greedy_and_repeats_with_the_seed() -> None:
    model = a_decoder()
    sampled = generation_settings(Generation(max_new_tokens=8, do_sample=True, temperature=2.0), (2,), 0)

    def run() -> list[str]:
        torch.manual_seed(3)
        return generate(model, PROMPTS, sampled, 4, decoded)

    assert run() == run() != generate(model, PROMPTS, greedy(), 4, decoded)
