"""Continuing prompts: greedy, sampled or by contrastive search, many at a time, padded on the left behind a mask.

A row gets what it would get alone: the same text in fp32 without sampling, and the same room below the position limit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import groupby

import torch
from finetune_api.evaluation import Generation
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from finetune_trainer.contrastive import contrastive_search
from finetune_trainer.long_rope import rope_border

Prompt = Sequence[int]
"""Ids, at least 1."""

CLEAN = {True: 1e-3, False: 5e-2}
"""How far logits may move beside a neighbour, relative to the largest; by whether all is computed in fp32."""


@dataclass(frozen=True)
class Stops:
    """Where a text ends, whatever it says."""

    end_ids: Sequence[int]
    """Any of these ends a text and is no part of it; the first one fills where a batch is padded."""
    position_limit: int | None = None
    """Longest sequence of the model, prompt included."""

    def room(self, prompt: Prompt, generation: Generation) -> int:
        """Most tokens behind this prompt."""
        most = generation.max_new_tokens
        return most if self.position_limit is None else min(most, self.position_limit - len(prompt))


def generation_settings(generation: Generation, stops: Stops) -> GenerationConfig:
    """The run's settings as transformers', for generating here and for the artifact. Nothing comes from the base's own
    defaults, which may hold penalties or sampling that nobody asked for.

    Contrastive search is not among them: transformers 5 would run code from the hub for it, so such an artifact says
    greedy, and `run.lock.json` has what was asked for.
    """
    sampling = (
        {"temperature": generation.temperature, "top_k": generation.top_k, "top_p": generation.top_p}
        if generation.do_sample
        else {}
    )
    return GenerationConfig(
        max_new_tokens=generation.max_new_tokens,
        do_sample=generation.do_sample,
        eos_token_id=list(stops.end_ids),
        pad_token_id=stops.end_ids[0],
        **sampling,
    )


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    generation: Generation,
    stops: Stops,
    batch_size: int,
    seed: int,
    decode: Callable[[list[int]], str],
) -> list[str]:
    """The continuation of each prompt, in order, without its end token.

    Sampling starts from `seed`, so that the same call gives the same texts; the random state of others stays as it was.
    """
    texts = [""] * len(prompts)
    with _evaluating(model), _seeded(seed, model.device):
        if batch_size > 1 and len(prompts) > 1 and not batches_cleanly(model, stops):
            batch_size = 1
        border = rope_border(model.config)
        for room, chosen in _batches(prompts, generation, stops, batch_size, border):
            outputs = _continued(model, [prompts[at] for at in chosen], generation, stops, room)
            for at, output in zip(chosen, outputs, strict=True):
                texts[at] = decode(_until_end(output, stops))
    return texts


def batches_cleanly(model: PreTrainedModel, stops: Stops) -> bool:
    """Whether a row beside a longer one gets the logits that it gets alone; found out by trying it."""
    vocabulary = model.config.get_text_config().vocab_size
    short, long = ([(at * 7 + 3) % vocabulary for at in range(length)] for length in (3, 8))
    settings = generation_settings(Generation(max_new_tokens=2), stops)
    settings.update(eos_token_id=None, output_logits=True, return_dict_in_generate=True)

    def logits(prompts: list[Prompt]) -> Tensor:
        ids, mask = padded(prompts, stops.end_ids[0], model.device)
        outputs = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        return torch.stack([step[0].float() for step in outputs.logits])

    alone, beside = logits([short]), logits([short, long])
    is_exact = model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type)
    return bool((alone - beside).abs().max() <= CLEAN[is_exact] * alone.abs().max())


def padded(prompts: Sequence[Prompt], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (1 = token), int64 (prompts, longest), with padding on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _batches(
    prompts: Sequence[Prompt], generation: Generation, stops: Stops, batch_size: int, border: int | None
) -> Iterator[tuple[int, list[int]]]:
    """Room and numbers of prompts that go together: of like length, so that little is padded, and of the same room, so
    that none is cut short by its neighbours. One that may grow over the `border` goes alone."""

    def kind(at: int) -> tuple[int, Side]:
        room = stops.room(prompts[at], generation)
        return room, _side(len(prompts[at]), room, border)

    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    for (room, side), members in groupby(order, key=kind):
        chosen, size = list(members), 1 if side is Side.ACROSS else batch_size
        yield from ((room, chosen[start : start + size]) for start in range(0, len(chosen), size))


def _side(length: int, room: int, border: int | None) -> "Side":
    """Where a prompt and what may follow it lie."""
    if border is None or length + room <= border:
        return Side.SHORT
    return Side.LONG if length > border else Side.ACROSS


class Side(Enum):
    """Of the border between short and long texts."""

    SHORT, ACROSS, LONG = range(3)


def _continued(
    model: PreTrainedModel, prompts: Sequence[Prompt], generation: Generation, stops: Stops, room: int
) -> list[list[int]]:
    ids, mask = padded(prompts, stops.end_ids[0], model.device)
    if generation.penalty_alpha > 0:
        alpha, top_k = generation.penalty_alpha, generation.top_k
        return contrastive_search(model, ids, mask, alpha, top_k, room, stops.end_ids).tolist()
    settings = generation_settings(generation.model_copy(update={"max_new_tokens": room}), stops)
    outputs: Tensor = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    return outputs[:, ids.shape[1] :].tolist()


def _until_end(ids: list[int], stops: Stops) -> list[int]:
    stop = next((at for at, token in enumerate(ids) if token in stops.end_ids), len(ids))
    return ids[:stop]


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout, and without the model's own defaults."""
    training, defaults = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = defaults
        model.train(training)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
