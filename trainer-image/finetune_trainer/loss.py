"""The loss over supervised tokens: the head runs on their positions alone, and in tiles."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from finetune_trainer.batch import Batch

TILE_ELEMENTS = 2**26
"""Most logits at a time: 256 MiB in fp32."""


class LossModel(Module):
    """A causal model whose forward is the loss of a batch, so that a wrapper for several devices sees one forward."""

    def __init__(
        self,
        model: PreTrainedModel,
        plain_head: bool,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """`plain_head`: the logits are the output embedding of the hidden state and nothing else.

        `precision` gives the context that the loss is computed in, such as autocast to bf16.
        """
        super().__init__()
        self.model = model
        self._plain_head = plain_head
        self._precision = precision

    def forward(self, batch: Batch) -> Tensor:
        """Sum of the negative log-likelihood over the batch's supervised tokens; fp32 scalar."""
        with self._precision():
            return self._bare_head_loss(batch) if self._plain_head else self._own_head_loss(batch)

    def _bare_head_loss(self, batch: Batch) -> Tensor:
        hidden = self.model.get_decoder()(**_arguments(batch)).last_hidden_state
        hidden = hidden.flatten(0, 1).index_select(0, batch.positions)
        return tiled_loss(
            self.model.get_output_embeddings(), hidden, batch.targets, self.model.config.get_text_config().vocab_size
        )

    def _own_head_loss(self, batch: Batch) -> Tensor:
        """For models that cap, scale or otherwise change their logits: their own logits, whole."""
        logits: Tensor = self.model(**_arguments(batch)).logits
        return _negative_log_likelihood(logits.flatten(0, 1).index_select(0, batch.positions), batch.targets)


def _arguments(batch: Batch) -> dict[str, object]:
    """Arguments of the model's forward. No cache, and no mask where packed: else transformers ignores the rows."""
    arguments: dict[str, object] = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "use_cache": False,
    }
    if batch.layout is None:
        return arguments | {"attention_mask": batch.attention_mask}
    return arguments | {"row_layout": batch.layout}


def tiled_loss(head: Module, hidden: Tensor, targets: Tensor, vocabulary: int) -> Tensor:
    """Sum of the negative log-likelihood of `targets` (n) under `head(hidden)`; hidden (n, d).

    Above TILE_ELEMENTS logits it goes tile by tile, and the backward pass computes each tile's logits again.
    """
    tile = max(1, TILE_ELEMENTS // vocabulary)
    if len(targets) <= tile:
        return _head_loss(head, hidden, targets)
    losses = [
        checkpoint(_head_loss, head, part, wanted, use_reentrant=False)
        for part, wanted in zip(torch.split(hidden, tile), torch.split(targets, tile), strict=True)
    ]
    return torch.stack(losses).sum()


def _head_loss(head: Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return _negative_log_likelihood(head(hidden), targets)


def _negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


HEAD_TOLERANCE = 1e-2
"""Largest difference of logits, relative to their size, between a model and its bare head in bf16."""


@torch.no_grad()
def has_plain_head(model: PreTrainedModel, ids: Tensor) -> bool:
    """Whether the model's logits are its output embedding of the last hidden state, seen by trying it on ids (1, t)."""
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        return False  # Small logits pass it unchanged, those of a trained model do not.
    training = model.training
    model.eval()
    output = model.get_decoder()(input_ids=ids, use_cache=False)
    own = model(input_ids=ids, use_cache=False).logits.float()
    model.train(training)
    if "last_hidden_state" not in output:
        return False  # What calls itself the decoder has the head in it.
    bare = model.get_output_embeddings()(output["last_hidden_state"]).float()
    return bool((own - bare).abs().max() <= HEAD_TOLERANCE * own.abs().max())
