"""Attention that stays inside the rows of a packed batch.

A packed batch has no attention mask; `RowLayout` says where its rows lie, and travels to every layer as the keyword
argument `row_layout` of the model's forward. On CUDA the rows go through one variable-length kernel; elsewhere each
run of equally long rows goes through one call of scaled_dot_product_attention. A model whose layers do not hand keyword
arguments on gets the layout as a mask of blocks instead, quadratic in the batch.

The name is registered in transformers' AttentionInterface and, on purpose, not in its AttentionMaskInterface: then no
mask is built at all, which would cost memory quadratic in the batch and, on CUDA, a host sync per forward. That is safe
because a forward without `row_layout` raises instead of attending over padding.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from finetune_trainer.batch import Packing, RowLayout

ROW_ATTENTION = "finetune_rows"
"""Name of the attention implementation in transformers' registry."""

KERNEL_MAX_HEAD_DIM = 256
"""Largest head of the variable-length kernel. Source: flash-attention 2."""

BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
"""On a GPU, the first that can. torch would ask cuDNN first, which makes a plan for each number of rows and each length
that it has not met: of packed batches hardly two are alike. Flash attention has one kernel for all."""


class UnsupportedByRowAttentionError(NotImplementedError):
    """The model asks for something that only its own attention can do: it runs unpacked."""


@dataclass(frozen=True)
class Scoring:
    """How a layer makes weights of query and key, beside what lies in them."""

    scaling: float | None
    """None = 1 / √d."""
    window: int | None = None
    """A token sees itself and so many - 1 before it; None = all before it."""
    dropout: float = 0.0
    softcap: float | None = None
    """Scores are bent to ± this."""
    sinks: Tensor | None = None
    """(heads): one more score for each token, which takes weight and gives nothing."""

    @property
    def is_plain(self) -> bool:
        """Whether kernels know it."""
        return self.softcap is None and self.sinks is None


def row_attention(
    module: Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    row_layout: RowLayout | None = None,
    **extras: object,
) -> tuple[Tensor, None]:
    """Causal attention within each row; transformers' attention interface.

    query (1, heads, tokens, d), key and value (1, kv heads, tokens, d). Returns (1, tokens, heads, d).
    Raises UnsupportedByRowAttentionError for what it cannot do: biases, bidirectional layers.
    """
    refused = [name for name in ("position_bias", "head_mask") if extras.get(name) is not None]
    if row_layout is None or refused or not getattr(module, "is_causal", True):
        raise UnsupportedByRowAttentionError(f"row attention lacks {refused or 'a row layout'}")
    query, key, value = _in_compute_precision(query, key, value)
    scoring = Scoring(scaling, sliding_window, dropout, softcap, s_aux)
    if _fits_kernel(query, value, scoring):
        return _kernel_attention(query, key, value, scoring, row_layout), None
    return _split_attention(query, key, value, scoring, row_layout.lengths), None


def _in_compute_precision(*tensors: Tensor) -> list[Tensor]:
    """What autocast does for scaled_dot_product_attention, it does for no other kernel: rotated queries are fp32."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]


def _fits_kernel(query: Tensor, value: Tensor, scoring: Scoring) -> bool:
    return (
        query.is_cuda
        and scoring.is_plain
        and scoring.dropout == 0.0
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= KERNEL_MAX_HEAD_DIM
        and query.shape[-1] % 8 == 0
    )


def _kernel_attention(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, layout: RowLayout) -> Tensor:
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    out = varlen_attn(
        query,
        key,
        value,
        layout.offsets,
        layout.offsets,
        layout.longest,
        layout.longest,
        scale=scoring.scaling,
        window_size=(-1 if scoring.window is None else scoring.window - 1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    assert isinstance(out, Tensor)
    return out[None]


def _split_attention(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, lengths: Sequence[int]) -> Tensor:
    """Split, not slices: the gradient of a split is one concatenation, that of n slices n buffers of full size."""
    runs = [(length, len(list(group))) for length, group in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    attend = _sdpa if scoring.is_plain else _spelled_out
    outputs = []
    parts = zip(runs, *(torch.split(x, sizes, dim=2) for x in (query, key, value)), strict=True)
    for (length, count), q, k, v in parts:
        out = attend(_unfold(q, count, length), _unfold(k, count, length), _unfold(v, count, length), scoring)
        outputs.append(out.transpose(1, 2).reshape(1, count * length, query.shape[1], value.shape[-1]))
    return torch.cat(outputs, dim=1)


def _unfold(x: Tensor, count: int, length: int) -> Tensor:
    """(1, heads, count · length, d) as (count, heads, length, d)."""
    if count == 1:
        return x
    return x.transpose(1, 2).reshape(count, length, x.shape[1], x.shape[3]).transpose(1, 2)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
    length, window = query.shape[2], scoring.window
    mask = _window_mask(length, window, query.device) if window is not None and window < length else None
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=scoring.dropout,
        is_causal=mask is None,
        scale=scoring.scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def _spelled_out(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
    """softmax(cap(q kᵀ · scale), sinks) v, with all its weights in memory: kernels know neither cap nor sinks."""
    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scoring.scaling is None else scoring.scaling)
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    scores = scores.masked_fill(~_window_mask(length, scoring.window or length, query.device), -torch.inf)
    if scoring.sinks is not None:
        sinks = scoring.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(len(scores), -1, length, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = torch.softmax(scores.float(), dim=-1)[..., :length].to(value.dtype)
    return functional.dropout(weights, scoring.dropout) @ value


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """bool (length, length): a token sees itself and the `window` - 1 before it."""
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None, :]
    return (distance >= 0) & (distance < window)


AttentionInterface.register(ROW_ATTENTION, row_attention)


@contextmanager
def rows_attended(model: PreTrainedModel, packing: Packing = Packing.ROWS) -> Iterator[None]:
    """Inside, the model attends over packed rows, in the way that suits it; after it, as before."""
    if packing is Packing.BLOCKS:
        with _blocks_masked(model):
            yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(ROW_ATTENTION)
    try:
        with _flash_first(model.device):
            yield
    finally:
        model.set_attn_implementation(before)


def _flash_first(device: torch.device) -> AbstractContextManager[None]:
    return sdpa_kernel(list(BACKENDS), set_priority=True) if device.type == "cuda" else nullcontext()


@contextmanager
def _blocks_masked(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a row layout becomes the mask that it means, for models whose layers hear nothing of layouts."""
    # The decoder alone, or the whole model, which hands the mask on to it.
    hooked = {id(module): module for module in (model, model.get_decoder())}.values()
    hooks = [module.register_forward_pre_hook(_mask_blocks, with_kwargs=True) for module in hooked]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _mask_blocks(module: Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    layout, mask = named.pop("row_layout", None), named.get("attention_mask")
    if layout is not None:
        return arguments, named | {"attention_mask": block_mask(layout)}
    if mask is None or mask.ndim != 4:
        raise UnsupportedByRowAttentionError("a packed forward needs a row layout")
    return arguments, named


def block_mask(layout: RowLayout) -> Tensor:
    """bool (1, 1, tokens, tokens): a token sees itself and those before it in its own row."""
    at = torch.arange(sum(layout.lengths), device=layout.offsets.device)
    row = torch.bucketize(at, layout.offsets, right=True)
    return ((row[:, None] == row[None, :]) & (at[:, None] >= at[None, :]))[None, None]
