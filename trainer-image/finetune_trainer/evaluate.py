"""Perplexity and generated answers of a model; the same code for base and tuned.

Sums of negative log-likelihood over supervised tokens, so that batch size, padding and order change nothing; batches
are generated with padding on the left, behind a mask.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from finetune_api.resource import Generation
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from finetune_trainer.batch import Batch

MAX_PERPLEXITY = 1e300
"""What is shown where the exponential leaves the range of floats: JSON has no infinity."""


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds the supervised tokens."""

    total: float
    """Sum of the negative log-likelihood, in nats."""
    tokens: int

    @property
    def loss(self) -> float:
        """Mean per token."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return MAX_PERPLEXITY


@torch.no_grad()
def likelihood(loss_model: torch.nn.Module, batches: Iterable[Batch]) -> Likelihood:
    """Over all batches, without dropout; `loss_model(batch)` is a batch's sum. The device is asked once, at the end."""
    training = loss_model.training
    loss_model.eval()
    total: Tensor | None = None
    tokens = 0
    for batch in batches:
        # fp64, so that the sum does not depend on how rows are spread over batches.
        loss = loss_model(batch).double()
        total = loss if total is None else total + loss
        tokens += batch.supervised
    loss_model.train(training)
    if total is None:
        raise ValueError("there is no batch to evaluate")
    return Likelihood(float(total), tokens)


def generation_settings(generation: Generation, end_ids: Sequence[int], pad_id: int) -> GenerationConfig:
    """The run's settings as transformers', for generating here and for the artifact. Nothing comes from the base's own
    defaults, which may hold penalties or sampling that nobody asked for."""
    sampling = (
        {"temperature": generation.temperature, "top_k": generation.top_k, "top_p": generation.top_p}
        if generation.do_sample
        else {}
    )
    return GenerationConfig(
        max_new_tokens=generation.max_new_tokens,
        do_sample=generation.do_sample,
        eos_token_id=list(end_ids),
        pad_token_id=pad_id,
        **sampling,
    )


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    batch_size: int,
    decode: Callable[[list[int]], str],
) -> list[str]:
    """The continuation of each prompt (ids, not empty), in order, without its end token.

    Prompts of like length go together, so that little is padded.
    """
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    texts = [""] * len(prompts)
    training, defaults = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            outputs = _generate_batch(model, [prompts[at] for at in chosen], settings)
            for at, output in zip(chosen, outputs, strict=True):
                texts[at] = decode(output)
    finally:
        model.generation_config = defaults
        model.train(training)
    return texts


def _generate_batch(
    model: PreTrainedModel, prompts: list[Sequence[int]], settings: GenerationConfig
) -> list[list[int]]:
    longest = max(len(prompt) for prompt in prompts)
    pad, ends = settings.pad_token_id, set(settings.eos_token_id)
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    outputs = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, longest:].tolist()
    return [_until_end(output, ends) for output in outputs]


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    stop = next((at for at, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop]
