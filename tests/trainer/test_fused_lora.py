"""The fused adapter is PEFT's, in fewer operations."""

import pytest
import torch
from finetune_api.training import Lora
from finetune_trainer.adapter import attach_adapter
from finetune_trainer.fused_lora import fuse_adapters
from finetune_trainer.loss import LossModel
from finetune_trainer.model import bare
from finetune_trainer.optimizer import trained_parameters
from finetune_trainer.pack import padded_batch
from peft import PeftModel

from tests.trainer.decoders import a_decoder, some_rows


def an_adapted_model(**lora: float) -> PeftModel:
    """With an update that is not zero, as in the middle of training."""
    model = attach_adapter(a_decoder(), Lora(rank=4, alpha=12, **lora), seed=0)
    with torch.no_grad():
        for parameter in trained_parameters(model):
            parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    return model


def loss_and_gradients(model: PeftModel) -> list[torch.Tensor]:
    loss = LossModel(bare(model), True)(padded_batch(some_rows(), range(5)))
    loss.backward()
    return [loss.detach(), *(p.grad for p in trained_parameters(model) if p.grad is not None)]


def test_loss_and_gradients_are_pefts() -> None:
    plain, fused = an_adapted_model(), an_adapted_model()
    assert fuse_adapters(fused) == 14
    wanted, found = loss_and_gradients(plain), loss_and_gradients(fused)
    assert len(found) == len(wanted) == 29
    for ours, theirs in zip(found, wanted, strict=True):
        # Sums in another order: an element near zero is as exact as the largest one, not as itself.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_the_gradient_is_that_of_finite_differences() -> None:
    from finetune_trainer.fused_lora import LoraProduct

    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 4).double(), torch.randn(3, 4).double(), torch.randn(3).double()
    a, b = torch.randn(2, 4).double().requires_grad_(), torch.randn(3, 2).double().requires_grad_()
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda *free: LoraProduct.apply(free[0], weight, bias, *free[1:], 1.5), (x, a, b))


@pytest.mark.parametrize("lora", [{"dropout": 0.1}])
def test_a_layer_with_dropout_stays_pefts(lora: dict[str, float]) -> None:
    assert fuse_adapters(an_adapted_model(**lora)) == 0


def test_a_fused_model_merges_and_generates_as_before() -> None:
    model = an_adapted_model()
    fuse_adapters(model)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        merged = model.merge_and_unload()(input_ids=ids).logits
    torch.testing.assert_close(before, merged, rtol=1e-4, atol=1e-5)
