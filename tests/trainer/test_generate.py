"""Rule E and acceptance case 15: what stands behind a prompt, whoever its neighbours are."""

from typing import Any

import pytest
import torch
from finetune_api.evaluation import Generation
from finetune_trainer.generate import Stops, batches_cleanly, generate, generation_settings
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import GenerationConfig, PreTrainedModel

from tests.trainer.decoders import FAMILIES, a_decoder

PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13], [14, 15, 16, 17, 18, 19, 20]]

SAMPLED: dict[str, Any] = {"doSample": True, "temperature": 2.0}
CONTRASTIVE: dict[str, Any] = {"penaltyAlpha": 0.6, "topK": 4}


def decoded(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def texts(
    model: PreTrainedModel,
    prompts: list[list[int]] = PROMPTS,
    batch_size: int = 4,
    stops: Stops = Stops([2]),  # noqa: B008 (frozen)
    seed: int = 3,
    **generation: Any,
) -> list[str]:
    """The continuations of some prompts, as ids."""
    settings = Generation.model_validate({"maxNewTokens": 8, **generation})
    return generate(model, prompts, settings, stops, batch_size, seed, decoded)


@pytest.mark.parametrize("settings", [{}, CONTRASTIVE], ids=["greedy", "contrastive"])
@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_in_a_batch_do_not_change_a_result(family: str, settings: dict[str, Any]) -> None:
    model = a_decoder(family)
    together = texts(model, **settings)
    assert together == texts(model, batch_size=1, **settings)
    assert len(set(together)) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_here_is_asked_one_by_one(family: str, caplog: pytest.LogCaptureFixture) -> None:
    assert batches_cleanly(a_decoder(family), Stops([2]))
    assert "generation flags" not in caplog.text


def test_a_model_that_sees_its_padding_is_asked_one_by_one() -> None:
    model, sizes = a_decoder(), []
    forward = model.forward

    def without_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    alone = texts(model, batch_size=1)
    model.forward = without_mask
    assert not batches_cleanly(model, Stops([2]))
    sizes.clear()
    assert texts(model) == alone
    assert set(sizes[-8:]) == {1}


def test_generation_is_the_plain_greedy_continuation_of_the_prompt() -> None:
    model, ids = a_decoder(), list(PROMPTS[0])
    [text] = texts(model, [PROMPTS[0]], maxNewTokens=3)
    for _ in range(3):
        ids.append(int(next_logits(model, ids).argmax()))
    assert text == decoded(ids[len(PROMPTS[0]) :])


def test_generation_stops_at_any_end_token_and_leaves_it_out() -> None:
    model = a_decoder()
    [whole] = texts(model, [PROMPTS[0]])
    third = int(whole.split()[2])
    expected = whole.split()[: whole.split().index(str(third))]
    [cut] = texts(model, [PROMPTS[0]], stops=Stops([2, third]))
    assert cut.split() == expected


@pytest.mark.parametrize("settings", [{}, CONTRASTIVE], ids=["greedy", "contrastive"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prompt_near_the_position_limit_gets_what_fits_and_shortens_no_neighbour(
    family: str, settings: dict[str, Any]
) -> None:
    model = a_decoder(family)
    prompts = [list(range(3, 3 + length)) for length in (3, 14, 5, 15)]
    free = [text.split() for text in texts(model, prompts, **settings)]
    found = [text.split() for text in texts(model, prompts, stops=Stops([2], position_limit=16), **settings)]
    assert found == [ids[:room] for ids, room in zip(free, (8, 2, 8, 1), strict=True)]
    assert found != free


def test_the_bases_own_generation_defaults_have_no_say() -> None:
    model = a_decoder()
    plain = texts(model)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.do_sample = True
    assert texts(model) == plain
    assert model.generation_config.repetition_penalty == 50.0


def test_sampling_differs_from_greedy_and_repeats_with_the_seed() -> None:
    model = a_decoder()
    sampled = texts(model, **SAMPLED)
    assert sampled == texts(model, **SAMPLED)
    assert sampled != texts(model, **SAMPLED, seed=4)
    assert sampled != texts(model)


def test_sampling_leaves_the_random_numbers_of_training_alone() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    texts(a_decoder(), **SAMPLED)
    assert torch.equal(torch.rand(3), wanted)


def test_top_k_of_one_and_a_tiny_top_p_sample_the_likeliest_token() -> None:
    model = a_decoder()
    assert texts(model, doSample=True, topK=1) == texts(model, doSample=True, topP=1e-6) == texts(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_contrastive_search_is_the_one_of_the_paper(family: str) -> None:
    model = a_decoder(family)
    for prompt, text in zip(PROMPTS, texts(model, **CONTRASTIVE), strict=True):
        wanted = by_the_paper(model, prompt, alpha=0.6, top_k=4, length=8)
        assert text == decoded(wanted[: wanted.index(2)] if 2 in wanted else wanted)


def test_contrastive_search_differs_from_greedy() -> None:
    model = a_decoder()
    assert texts(model, **CONTRASTIVE) != texts(model)


def test_contrastive_search_without_a_penalty_to_speak_of_is_greedy() -> None:
    model = a_decoder()
    assert texts(model, penaltyAlpha=1e-9, topK=4) == texts(model)


def test_contrastive_search_ends_once_every_row_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_decoder()
    second = {int(text.split()[1]) for text in texts(model, **CONTRASTIVE)}
    calls, forward = [], model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(*args, **kwargs)

    found = texts(model, stops=Stops([2, *second]), maxNewTokens=40, batch_size=4, **CONTRASTIVE)
    assert all(len(text.split()) <= 1 for text in found)
    monkeypatch.setattr(model, "forward", counted)
    texts(model, [PROMPTS[0]], stops=Stops([2, *second]), maxNewTokens=40, batch_size=1, **CONTRASTIVE)
    assert len(calls) <= 3


def test_the_artifact_says_greedy_where_its_loaders_would_fetch_code_for_contrastive_search() -> None:
    settings = generation_settings(Generation.model_validate(CONTRASTIVE), Stops([2, 5]))
    assert settings.to_diff_dict().keys() <= {"max_new_tokens", "do_sample", "eos_token_id", "pad_token_id"} | {
        "transformers_version"
    }
    model = a_decoder()
    ids = torch.tensor([PROMPTS[0]])
    assert model.generate(input_ids=ids, generation_config=GenerationConfig(**settings.to_dict())).shape[0] == 1


def next_logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits


def by_the_paper(model: PreTrainedModel, prompt: list[int], alpha: float, top_k: int, length: int) -> list[int]:
    """Contrastive search as its equation reads: one row, no cache, every candidate anew."""
    ids = list(prompt)
    for _ in range(length):
        probabilities, candidates = next_logits(model, ids).softmax(-1).topk(top_k)
        scores = [
            (1 - alpha) * float(probability) - alpha * likeness(model, [*ids, int(candidate)])
            for probability, candidate in zip(probabilities, candidates, strict=True)
        ]
        ids.append(int(candidates[max(range(top_k), key=lambda at: scores[at])]))
    return ids[len(prompt) :]


def likeness(model: PreTrainedModel, ids: list[int]) -> float:
    """The largest cosine of the last token's state with any before it."""
    with torch.no_grad():
        outputs = model(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    states = outputs.hidden_states[-1][0]
    return float(cosine_similarity(states[:-1], states[-1:]).max())
