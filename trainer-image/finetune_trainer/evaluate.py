"""Perplexity of a model; the same code for base and tuned.

Sums of negative log-likelihood over supervised tokens, so that batch size, padding and order change nothing.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

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
def likelihood(
    loss_model: torch.nn.Module, batches: Iterable[Batch], between: Callable[[], None] | None = None
) -> Likelihood:
    """Over all batches, without dropout; `loss_model(batch)` is a batch's sum. The device is asked once, at the end.

    `between` is called before each batch, and may raise.
    """
    training = loss_model.training
    loss_model.eval()
    total: Tensor | None = None
    tokens = 0
    for batch in batches:
        if between:
            between()
        # fp64, so that the sum does not depend on how rows are spread over batches.
        loss = loss_model(batch).double()
        total = loss if total is None else total + loss
        tokens += batch.supervised
    loss_model.train(training)
    if total is None:
        raise ValueError("there is no batch to evaluate")
    return Likelihood(float(total), tokens)
