"""One linear layer with its adapter as one operation, for fp32 on CPU.

PEFT computes base(x) + B(A(x)) · s with a multiplication and an addition as large as the output, forward and backward.
Scaling the narrow A(x) instead, and adding inside the matrix product, leaves the sums and saves the passes over memory.
Why not on a GPU: docs/decisions/0010.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


class LoraProduct(torch.autograd.Function):
    """x Wᵀ + bias + s · x Aᵀ Bᵀ; W and bias are frozen. Source: Hu et al. 2021, arXiv 2106.09685, section 4.1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """x (tokens, d_in), weight (d_out, d_in), a (rank, d_in), b (d_out, rank). Returns (tokens, d_out)."""
        narrow = (x @ a.T).mul_(scale)
        ctx.save_for_backward(x, weight, a, b, narrow)
        ctx.scale = scale
        return functional.linear(x, weight, bias).addmm_(narrow, b.T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, a and b."""
        (gradient,) = gradients
        x, weight, a, b, narrow = ctx.saved_tensors
        of_narrow = (gradient @ b).mul_(ctx.scale)
        of_x = (gradient @ weight).addmm_(of_narrow, a) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_narrow.T @ x, gradient.T @ narrow, None


def fuse_adapters(model: nn.Module) -> int:
    """Let every adapted layer that can compute in one operation; returns how many can."""
    layers = [module for module in model.modules() if isinstance(module, LoraLinear) and _can_be_fused(module)]
    for layer in layers:
        layer.forward = partial(_fused_forward, layer)
    return len(layers)


def _can_be_fused(layer: LoraLinear) -> bool:
    """A plain fp32 linear layer on CPU with one plain adapter: no dropout, no variant of LoRA."""
    base = layer.get_base_layer()
    return (
        type(base) is nn.Linear
        and base.weight.device.type == "cpu"
        and base.weight.dtype == torch.float32
        and not base.weight.requires_grad
        and layer.active_adapters == ["default"]
        and isinstance(layer.lora_dropout["default"], nn.Identity)
        and not layer.lora_variant
        and layer.lora_B["default"].bias is None
        and layer.lora_A["default"].weight.dtype == torch.float32
    )


def _fused_forward(layer: LoraLinear, x: Tensor) -> Tensor:
    base = layer.get_base_layer()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    out: Tensor = LoraProduct.apply(x.flatten(0, -2), base.weight, base.bias, a, b, layer.scaling["default"])
    return out.view(*x.shape[:-1], -1)
