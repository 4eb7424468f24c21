"""Packing, accumulation and the sparse head change nothing: loss and gradients are those of a plain forward."""

import pytest
import torch
import torch.nn.functional as functional
from finetune_trainer.attention import UnsupportedByRowAttentionError, packs_cleanly, row_attention, rows_attended
from finetune_trainer.batch import Batch
from finetune_trainer.loss import LossModel, has_plain_head, tiled_loss
from finetune_trainer.pack import micro_batches, packed_batch, padded_batch
from finetune_trainer.prepared import TokenRows
from torch import Tensor
from transformers import PreTrainedModel

from tests.trainer.decoders import FAMILIES, a_decoder, some_rows

EVERY_ROW = range(5)


def plain_loss(model: PreTrainedModel, rows: TokenRows, chosen: range) -> Tensor:
    """The oracle: each row alone through the model's own forward with -100 labels; mean over supervised tokens."""
    total, count = torch.zeros(()), 0
    for number in chosen:
        ids, supervised = rows.row(number)
        row = torch.tensor(ids[None].astype("int64"))
        labels = row.masked_fill(~torch.tensor(supervised[None]), -100)
        logits = model(input_ids=row).logits
        total = total + functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        count += int(supervised.sum())
    return total / count


def step_loss(model: PreTrainedModel, batches: list[Batch], plain_head: bool = True) -> Tensor:
    """The product: token-weighted over all micro-batches of a step."""
    supervised = sum(batch.supervised for batch in batches)
    losses = [LossModel(model, plain_head)(batch) / supervised for batch in batches]
    return torch.stack(losses).sum()


def gradients(model: PreTrainedModel, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_same_training(model: PreTrainedModel, found: Tensor, wanted: Tensor) -> None:
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    for ours, theirs in zip(gradients(model, found), gradients(model, wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_train_as_each_row_alone(family: str) -> None:
    model, rows = a_decoder(family), some_rows()
    batches = micro_batches(rows, EVERY_ROW, rows_per_batch=8, packed=True)
    with rows_attended(model):
        found = step_loss(model, batches)
    assert_same_training(model, found, plain_loss(model, rows, EVERY_ROW))


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_train_as_each_row_alone(family: str) -> None:
    model, rows = a_decoder(family), some_rows()
    found = step_loss(model, micro_batches(rows, EVERY_ROW, rows_per_batch=8, packed=False))
    assert_same_training(model, found, plain_loss(model, rows, EVERY_ROW))


@pytest.mark.parametrize("packed", [True, False])
def test_accumulation_of_single_rows_has_the_gradients_of_one_batch_also_with_unequal_rows(packed: bool) -> None:
    model, rows = a_decoder(), some_rows((11, 3, 6))
    with rows_attended(model) if packed else torch.enable_grad():
        one = gradients(model, step_loss(model, micro_batches(rows, range(3), 4, packed)))
        many = gradients(model, step_loss(model, micro_batches(rows, range(3), 1, packed)))
    for ours, theirs in zip(many, one, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_hidden_states_are_those_of_each_row(family: str) -> None:
    model, rows = a_decoder(family).eval(), some_rows()
    batch = packed_batch(rows, [2, 0, 4, 1, 3])
    with torch.no_grad():
        with rows_attended(model):
            packed = model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                row_layout=batch.layout,
                use_cache=False,
            ).logits[0]
        alone = [model(input_ids=row[None]).logits[0] for row in batch.input_ids[0].split([12, 9, 7, 4, 4])]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_forward_without_rows_is_refused_instead_of_attending_over_everything() -> None:
    model, batch = a_decoder(), padded_batch(some_rows(), EVERY_ROW)
    with rows_attended(model), pytest.raises(UnsupportedByRowAttentionError):
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


def test_attention_is_as_before_after_the_packed_phase() -> None:
    model = a_decoder()
    before = model.config._attn_implementation
    with rows_attended(model):
        pass
    assert model.config._attn_implementation == before


def test_soft_caps_are_left_to_the_models_own_attention() -> None:
    batch = packed_batch(some_rows(), EVERY_ROW)
    x = torch.zeros(1, 2, batch.tokens, 8)
    with pytest.raises(UnsupportedByRowAttentionError, match="softcap"):
        row_attention(torch.nn.Module(), x, x, x, None, row_layout=batch.layout, softcap=30.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformer_packs_cleanly(family: str) -> None:
    model, batch = a_decoder(family), packed_batch(some_rows(), [2, 0])
    assert batch.layout is not None
    assert packs_cleanly(model, batch.layout, batch.input_ids, batch.position_ids)
    assert model.training


def test_a_model_that_ignores_the_rows_is_found_out() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4))
    batch = packed_batch(some_rows((7, 5)), [0, 1])
    assert batch.layout is not None
    assert not packs_cleanly(model, batch.layout, batch.input_ids, batch.position_ids)


def test_the_tiled_head_has_the_loss_and_gradients_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer import loss

    head, targets = torch.nn.Linear(8, 50), torch.arange(20)
    results = []
    for elements in (loss.TILE_ELEMENTS, 50 * 6):
        monkeypatch.setattr(loss, "TILE_ELEMENTS", elements)
        hidden = torch.linspace(-1, 1, 160).view(20, 8).requires_grad_()
        head.zero_grad()
        total = tiled_loss(head, hidden, targets, vocabulary=50)
        total.backward()
        assert hidden.grad is not None
        assert head.weight.grad is not None
        results.append((total.detach(), hidden.grad, head.weight.grad.clone()))
    for whole, tiled in zip(*results, strict=True):
        torch.testing.assert_close(whole, tiled)


def test_a_head_that_scales_its_logits_is_not_taken_for_a_plain_one() -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    from tests.trainer.decoders import COMMON

    sizes = {key: value for key, value in COMMON.items() if key != "head_dim"}
    granite = GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=4.0))
    rows = some_rows()
    batch = packed_batch(rows, EVERY_ROW)
    assert has_plain_head(a_decoder(), batch.input_ids)
    assert not has_plain_head(granite, batch.input_ids)
    found = step_loss(granite, micro_batches(rows, EVERY_ROW, 8, packed=False), plain_head=False)
    assert_same_training(granite, found, plain_loss(granite, rows, EVERY_ROW))
