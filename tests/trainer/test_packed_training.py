"""Packing, accumulation and the sparse head change nothing: loss and gradients are those of a plain forward."""

import pytest
import torch
import torch.nn.functional as functional
from finetune_trainer.attention import UnsupportedByRowAttentionError
from finetune_trainer.batch import Batch
from finetune_trainer.loss import LossModel, has_plain_head, tiled_loss
from finetune_trainer.pack import micro_batches, packed_batch, padded_batch
from finetune_trainer.prepared import TokenRows
from torch import Tensor
from transformers import PreTrainedModel

from tests.trainer.decoders import FAMILIES, PACKED, a_decoder, packed_rows, some_rows

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


def step_loss(model: PreTrainedModel, batches: list[Batch]) -> Tensor:
    """The product: token-weighted over all micro-batches of a step."""
    supervised = sum(batch.supervised for batch in batches)
    plain_head = model.config.model_type not in ("gemma2", "granite")
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


@pytest.mark.parametrize("family", PACKED)
def test_packed_rows_train_as_each_row_alone(family: str) -> None:
    model, rows = a_decoder(family), some_rows()
    batches = micro_batches(rows, EVERY_ROW, rows_per_batch=8, packed=True)
    with packed_rows(model):
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
    with packed_rows(model) if packed else torch.enable_grad():
        one = gradients(model, step_loss(model, micro_batches(rows, range(3), 4, packed)))
        many = gradients(model, step_loss(model, micro_batches(rows, range(3), 1, packed)))
    for ours, theirs in zip(many, one, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", PACKED)
def test_packed_hidden_states_are_those_of_each_row(family: str) -> None:
    model, rows = a_decoder(family).eval(), some_rows()
    batch = packed_batch(rows, [2, 0, 4, 1, 3])
    with torch.no_grad():
        with packed_rows(model):
            packed = model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                row_layout=batch.layout,
                use_cache=False,
            ).logits[0]
        alone = [model(input_ids=row[None]).logits[0] for row in batch.input_ids[0].split([12, 9, 7, 4, 4])]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_a_forward_without_rows_is_refused_instead_of_attending_over_everything(family: str) -> None:
    model, batch = a_decoder(family), padded_batch(some_rows(), EVERY_ROW)
    with packed_rows(model), pytest.raises(UnsupportedByRowAttentionError):
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_attention_is_as_before_after_the_packed_phase(family: str) -> None:
    model, batch = a_decoder(family).eval(), padded_batch(some_rows(), EVERY_ROW)
    before = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    with packed_rows(model):
        pass
    assert torch.equal(model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits, before)


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
    assert not has_plain_head(a_decoder("gemma2"), batch.input_ids)
    assert not has_plain_head(granite, batch.input_ids)
    found = step_loss(granite, micro_batches(rows, EVERY_ROW, 8, packed=False))
    assert_same_training(granite, found, plain_loss(granite, rows, EVERY_ROW))
