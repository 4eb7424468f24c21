"""Attention that stays inside the rows of a packed batch.

A packed batch has no attention mask; `RowLayout` says where its rows lie, and travels to every layer as the keyword
argument `row_layout` of the model's forward. On CUDA the rows go through one variable-length kernel; elsewhere each
run of equally long rows goes through one call of scaled_dot_product_attention.

The name is registered in transformers' AttentionInterface and, on purpose, not in its AttentionMaskInterface: then no
mask is built at all, which would cost memory quadratic in the batch and, on CUDA, a host sync per forward. That is safe
because a forward without `row_layout` raises instead of attending over padding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.nn import Module
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from finetune_trainer.batch import RowLayout

ROW_ATTENTION = "finetune_rows"
"""Name of the attention implementation in transformers' registry."""

KERNEL_MAX_HEAD_DIM = 256
"""Largest head of the variable-length kernel. Source: flash-attention 2."""


class UnsupportedByRowAttentionError(NotImplementedError):
    """The model asks for something that only its own attention can do: it runs unpacked."""


def row_attention(
    module: Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    row_layout: RowLayout | None = None,
    **extras: object,
) -> tuple[Tensor, None]:
    """Causal attention within each row; transformers' attention interface.

    query (1, heads, tokens, d), key and value (1, kv heads, tokens, d). Returns (1, tokens, heads, d).
    Raises UnsupportedByRowAttentionError for what it cannot do: soft caps, sinks, biases, bidirectional layers.
    """
    refused = [name for name in ("softcap", "s_aux", "position_bias", "head_mask") if extras.get(name) is not None]
    if row_layout is None or refused or not getattr(module, "is_causal", True):
        raise UnsupportedByRowAttentionError(f"row attention lacks {refused or 'a row layout'}")
    if _fits_kernel(query, dropout):
        return _kernel_attention(query, key, value, scaling, sliding_window, row_layout), None
    return _split_attention(query, key, value, dropout, scaling, sliding_window, row_layout.lengths), None


def _fits_kernel(query: Tensor, dropout: float) -> bool:
    return (
        query.is_cuda
        and dropout == 0.0
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= KERNEL_MAX_HEAD_DIM
        and query.shape[-1] % 8 == 0
    )


def _kernel_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, layout: RowLayout
) -> Tensor:
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    out = varlen_attn(
        query,
        key,
        value,
        layout.offsets,
        layout.offsets,
        layout.longest,
        layout.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    assert isinstance(out, Tensor)
    return out[None]


def _split_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
    lengths: Sequence[int],
) -> Tensor:
    """Split, not slices: the gradient of a split is one concatenation, that of n slices n buffers of full size."""
    runs = [(length, len(list(group))) for length, group in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    grouped = key.shape[1] != query.shape[1]
    outputs = []
    parts = zip(runs, *(torch.split(x, sizes, dim=2) for x in (query, key, value)), strict=True)
    for (length, count), q, k, v in parts:
        mask = _window_mask(length, window, query.device) if window is not None and window < length else None
        out = functional.scaled_dot_product_attention(
            _unfold(q, count, length),
            _unfold(k, count, length),
            _unfold(v, count, length),
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=grouped,
        )
        outputs.append(out.transpose(1, 2).reshape(1, count * length, query.shape[1], value.shape[-1]))
    return torch.cat(outputs, dim=1)


def _unfold(x: Tensor, count: int, length: int) -> Tensor:
    """(1, heads, count · length, d) as (count, heads, length, d)."""
    if count == 1:
        return x
    return x.transpose(1, 2).reshape(count, length, x.shape[1], x.shape[3]).transpose(1, 2)


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """bool (length, length): a token sees itself and the `window` - 1 before it."""
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None, :]
    return (distance >= 0) & (distance < window)


AttentionInterface.register(ROW_ATTENTION, row_attention)


@contextmanager
def rows_attended(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model attends over packed rows; after it, as before."""
    before = model.config._attn_implementation
    model.set_attn_implementation(ROW_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


PROBE_LENGTHS = (7, 5)
LEAK_TOLERANCE = 2e-2
"""Largest difference of hidden states, relative to their size, that bf16 rounding explains; a leak is of order 1."""


@torch.no_grad()
def packs_cleanly(model: PreTrainedModel, layout: RowLayout, ids: Tensor, position_ids: Tensor) -> bool:
    """Whether rows of a packed batch leave each other alone in this model, seen by trying it.

    A state-space or convolutional layer carries one row over into the next; a model may also refuse the arguments.
    ids and position_ids (1, tokens), laid out as `layout` says. The model is left in the mode it was in.
    """
    training = model.training
    model.eval()
    try:
        with rows_attended(model):
            packed = _hidden(model, ids, position_ids, layout)
    except (UnsupportedByRowAttentionError, TypeError, ValueError):
        return False
    finally:
        model.train(training)
    model.eval()
    alone = torch.cat([_hidden(model, row, None, None) for row in torch.split(ids, list(layout.lengths), dim=1)], dim=1)
    model.train(training)
    return bool((packed - alone).abs().max() <= LEAK_TOLERANCE * alone.abs().max())


def _hidden(model: PreTrainedModel, ids: Tensor, position_ids: Tensor | None, layout: RowLayout | None) -> Tensor:
    extras = {} if layout is None else {"row_layout": layout, "position_ids": position_ids}
    out: Tensor = model.get_decoder()(input_ids=ids, use_cache=False, **extras).last_hidden_state
    return out.float()
