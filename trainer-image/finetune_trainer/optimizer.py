"""Optimizers over a model's trained parameters, and clipping of their gradients."""

from collections.abc import Iterable
from typing import Any

import torch
from finetune_api.training import Optimizer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module, Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers.optimization import Adafactor


def trained_by_name(model: Module) -> dict[str, Parameter]:
    """The parameters that training changes."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_parameters(model: Module) -> list[Parameter]:
    """The parameters that training changes, in order."""
    return list(trained_by_name(model).values())


def decay_groups(parameters: Iterable[Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay; biases and norms, which have one dimension, do not."""
    parameters = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    kind: Optimizer, parameters: Iterable[Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer `kind`. Decay is decoupled, but for `adam`, which adds it to the gradient."""
    groups = decay_groups(parameters, weight_decay)
    if kind is Optimizer.ADAMW:
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    if kind is Optimizer.ADAM:
        return torch.optim.Adam(groups, lr=learning_rate, fused=True)
    if kind in (Optimizer.ADAMW8BIT, Optimizer.PAGED_ADAMW8BIT):
        return _in_8_bits(groups, learning_rate, paged=kind is Optimizer.PAGED_ADAMW8BIT)
    if kind is Optimizer.SGD:
        # Without momentum, decay in the gradient and decoupled decay are the same thing.
        parts = any(isinstance(parameter, DTensor) for parameter in parameters)
        return torch.optim.SGD(groups, lr=learning_rate, fused=not parts)
    adafactor: torch.optim.Optimizer = Adafactor(
        groups, lr=learning_rate, scale_parameter=False, relative_step=False, warmup_init=False
    )
    return adafactor


def _in_8_bits(groups: list[dict[str, Any]], learning_rate: float, paged: bool) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW; tensors of less than 4096 numbers keep fp32 state. Only a GPU has anything to page out.

    Source: Dettmers et al. 2022, arXiv 2110.02861.
    """
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit  # Late: it takes long, and most runs do not need it.

    on_gpu = any(parameter.is_cuda for group in groups for parameter in group["params"])
    kind = PagedAdamW8bit if paged and on_gpu else AdamW8bit
    optimizer: torch.optim.Optimizer = kind(groups, lr=learning_rate)
    return optimizer


def place_state(optimizer: torch.optim.Optimizer, parameter: Parameter, value: Tensor) -> Tensor:
    """A tensor that `optimizer` kept for `parameter`, back beside it; in paged memory where it was."""
    if getattr(optimizer, "is_paged", False) and value.shape == parameter.shape:
        return optimizer.get_state_buffer(parameter, value.dtype).copy_(value)  # type: ignore[attr-defined,no-any-return]
    return value.to(parameter.device)


def clip_gradients(parameters: list[Parameter], max_norm: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `max_norm` (0 = leave them).

    Returns the norm before, as a tensor: reading its value would make the host wait for the device.
    """
    norm = get_total_norm(p.grad for p in parameters if p.grad is not None)
    if max_norm > 0:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
