"""Row attention against a plain account of what each token may see, and against the kernel's arithmetic."""

from typing import Any

import pytest
import torch
from finetune_trainer import attention
from finetune_trainer.attention import Scoring, UnsupportedByRowAttentionError, block_mask, row_attention
from finetune_trainer.batch import RowLayout
from finetune_trainer.tiny_copy import HEAD_SIZE
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

LENGTHS = (7, 4, 4, 1)
LAYOUT = RowLayout(LENGTHS, torch.tensor([0, 7, 11, 15, 16], dtype=torch.int32))
SINKS = torch.linspace(-1, 1, 4)


Heads = tuple[Tensor, Tensor, Tensor]
"""Query, key and value."""


def some_heads(kv_heads: int = 2) -> Heads:
    """Of 16 tokens; 4 query heads of size 8."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, count, sum(LENGTHS), 8) for count in (4, kv_heads, kv_heads))
    return query, key, value


def one_by_one(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
    """The oracle: each token of each head on its own. Returns (1, tokens, heads, d)."""
    out = torch.zeros(1, query.shape[2], query.shape[1], value.shape[-1])
    groups = query.shape[1] // key.shape[1]
    for start, end in zip(LAYOUT.offsets.tolist(), LAYOUT.offsets.tolist()[1:], strict=False):
        for at in range(start, end):
            first = start if scoring.window is None else max(start, at - scoring.window + 1)
            for head in range(query.shape[1]):
                seen = key[0, head // groups, first : at + 1]
                scores = seen @ query[0, head, at] * (scoring.scaling or query.shape[-1] ** -0.5)
                if scoring.softcap is not None:
                    scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
                weights = torch.exp(scores)
                sink = torch.exp(scoring.sinks[head]) if scoring.sinks is not None else 0.0
                out[0, at, head] = (weights / (weights.sum() + sink)) @ value[0, head // groups, first : at + 1]
    return out


def by_rows(heads: Heads, scoring: Scoring) -> Tensor:
    return row_attention(
        torch.nn.Module(),
        *heads,
        attention_mask=None,
        scaling=scoring.scaling,
        sliding_window=scoring.window,
        softcap=scoring.softcap,
        s_aux=scoring.sinks,
        row_layout=LAYOUT,
    )[0]


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("more", [{}, {"softcap": 0.7}, {"sinks": SINKS}, {"softcap": 2.0, "sinks": SINKS}])
def test_a_token_sees_its_own_row_up_to_itself_and_no_further_than_the_window(
    window: int | None, more: dict[str, Any]
) -> None:
    scoring, heads = Scoring(scaling=0.4, window=window, **more), some_heads()
    torch.testing.assert_close(by_rows(heads, scoring), one_by_one(*heads, scoring))


def reference_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` documents: (tokens, heads, d); a window counts neighbours."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert enable_gqa == (query.shape[1] != key.shape[1])
    left, right = window_size
    rows = []
    for start, end in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)[None, :]
        seen = (distance >= -right if right >= 0 else distance == distance) & (distance <= left if left >= 0 else True)
        k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for x in (k, v))
        scores = (q @ k.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)).masked_fill(~seen, -torch.inf)
        rows.append((torch.softmax(scores, dim=-1) @ v).transpose(0, 1))
    return torch.cat(rows)


def test_the_reference_takes_the_arguments_of_the_real_kernel() -> None:
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    real, ours = (inspect.signature(function).parameters for function in (varlen_attn, reference_varlen))
    assert [name for name in ours if name not in real] == []
    assert [ours[name].kind for name in ours] == [real[name].kind for name in ours]
    assert [ours[name].default for name in ours] == [real[name].default for name in ours]


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_kernel_is_told_rows_window_and_groups_so_that_it_gives_the_same(
    window: int | None, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, scoring = some_heads(kv_heads=kv_heads), Scoring(scaling=0.4, window=window)
    wanted = by_rows(heads, scoring)
    monkeypatch.setattr(attention, "varlen_attn", reference_varlen)
    monkeypatch.setattr(attention, "_fits_kernel", lambda *_: True)
    torch.testing.assert_close(by_rows(heads, scoring), wanted)


BF16 = torch.bfloat16


def on_a_gpu(heads: int, size: int, dtype: torch.dtype = BF16) -> Tensor:
    """Query, key or value without data; call it inside FakeTensorMode, which needs no GPU for it."""
    return torch.empty(1, heads, sum(LENGTHS), size, dtype=dtype, device="cuda")


@pytest.mark.parametrize(
    ("query", "value", "scoring", "fits"),
    [
        ({}, {}, {}, True),
        ({"dtype": torch.float16}, {}, {}, True),
        ({}, {}, {"window": 3, "scaling": 0.4}, True),
        ({"size": 256}, {"size": 256}, {}, True),
        ({"size": HEAD_SIZE}, {"size": HEAD_SIZE}, {}, True),
        ({"dtype": torch.float32}, {}, {}, False),
        ({"size": 264}, {"size": 264}, {}, False),
        ({"size": 60}, {"size": 60}, {}, False),
        ({"size": 192}, {"size": 128}, {}, False),
        ({}, {}, {"dropout": 0.1}, False),
        ({}, {}, {"softcap": 50.0}, False),
        ({}, {}, {"sinks": SINKS}, False),
    ],
    ids=str,
)
def test_the_kernel_is_taken_for_what_it_can_do(
    query: dict[str, Any], value: dict[str, Any], scoring: dict[str, Any], fits: bool
) -> None:
    """The head size of the copy that is tried at start is among them: else it would try out another way."""
    with FakeTensorMode():
        heads = on_a_gpu(4, **{"size": 64} | query), on_a_gpu(2, **{"size": 64} | value)
        assert attention._fits_kernel(*heads, Scoring(**{"scaling": None} | scoring)) is fits


def test_the_kernel_is_not_taken_on_a_cpu() -> None:
    query, _, value = (x.to(BF16) for x in some_heads())
    assert not attention._fits_kernel(query, value, Scoring(scaling=None))


@pytest.mark.parametrize("window", [None, 3])
def test_the_real_kernel_takes_what_it_is_told(window: int | None) -> None:
    """Without a GPU no more than that: torch looks at the arguments and gives a result without data."""
    with FakeTensorMode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        layout = RowLayout(LENGTHS, torch.empty(len(LENGTHS) + 1, dtype=torch.int32, device="cuda"))
        heads = on_a_gpu(4, 64), on_a_gpu(2, 64), on_a_gpu(2, 64)
        named: dict[str, Any] = {"attention_mask": None, "sliding_window": window, "row_layout": layout}
        out, _ = row_attention(torch.nn.Module(), *heads, **named)
    assert (out.shape, out.dtype, out.is_cuda) == ((1, sum(LENGTHS), 4, 64), BF16, True)


def test_under_autocast_the_kernel_gets_half_precision_as_scaled_dot_product_attention_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.dtype] = []
    monkeypatch.setattr(attention, "_fits_kernel", lambda query, value, _: seen.extend([query.dtype, value.dtype]))
    query, key, value = some_heads()
    with torch.autocast("cpu", torch.bfloat16):
        out = by_rows((query, key, value.to(torch.bfloat16)), Scoring(scaling=None))
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("what", ["position_bias", "head_mask"])
def test_what_only_the_models_own_attention_can_do_is_refused(what: str) -> None:
    extras: dict[str, Any] = {what: torch.zeros(1)}
    with pytest.raises(UnsupportedByRowAttentionError, match=what):
        row_attention(torch.nn.Module(), *some_heads(), attention_mask=None, row_layout=LAYOUT, **extras)


def test_a_bidirectional_layer_is_refused() -> None:
    layer = torch.nn.Module()
    layer.is_causal = False  # type: ignore[assignment]
    with pytest.raises(UnsupportedByRowAttentionError):
        row_attention(layer, *some_heads(), attention_mask=None, row_layout=LAYOUT)


def test_the_mask_of_blocks_lets_a_token_see_its_row_up_to_itself() -> None:
    mask = block_mask(RowLayout((2, 3), torch.tensor([0, 2, 5], dtype=torch.int32)))[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
