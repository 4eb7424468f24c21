"""Regional compilation: each layer of a model is compiled in place, and all layers share what is made of one.

Parameters keep their names, and everything else goes on seeing the same modules. Lengths vary from batch to batch, so
shapes are dynamic. Row attention stays outside: its arguments are lengths, and traced it would be compiled anew for
almost every batch.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils.parametrize import is_parametrized
from transformers import AttentionInterface, PreTrainedModel

from finetune_trainer.attention import ROW_ATTENTION, row_attention
from finetune_trainer.layers import layers_of

Backend = str | Callable[..., Any]
"""What torch.compile takes."""

COMPILER: Backend = "inductor"
"""torch's own."""

C_COMPILERS = ("gcc", "clang")
"""Triton builds what starts its kernels with one of them. Source: triton.runtime.build."""


def hindrance(model: PreTrainedModel, by_rows: bool, recomputed: bool, sharded: bool) -> str | None:
    """Why the layers of `model` are not to be compiled, whatever that would save; None where nothing is in the way.

    `by_rows`: packed rows go through row attention. `recomputed`: activations are not kept.
    """
    modules = list(model.modules())
    found = (
        (model.device.type != "cuda", "layers are compiled on a GPU alone"),
        (not by_rows, "rows do not go through row attention"),
        (recomputed, "what computes activations again keeps the compiler out"),
        (sharded, "the weights are in shards"),
        (any(type(each).__module__.startswith("bitsandbytes.") for each in modules), "the weights are quantised"),
        # Their classes are made for each module, so that no two layers are alike.
        (any(is_parametrized(each) for each in modules), "adapters of fused experts differ from layer to layer"),
        (not any(map(shutil.which, C_COMPILERS)), "this image has no C compiler"),
    )
    return next((why for is_so, why in found if is_so), None)


@contextmanager
def layers_compiled(model: PreTrainedModel, wanted: bool, backend: Backend | None = None) -> Iterator[None]:
    """Inside, the layers of `model` run compiled, if wanted. What the compiler cannot do runs as it is."""
    if not wanted:
        yield
        return
    layers = layers_of(model)
    for layer in layers:
        layer.compile(backend=backend or COMPILER, dynamic=True)
    AttentionInterface.register(ROW_ATTENTION, torch.compiler.disable(row_attention))  # type: ignore[no-untyped-call]
    try:
        with torch._dynamo.config.patch(suppress_errors=True):
            yield
    finally:
        AttentionInterface.register(ROW_ATTENTION, row_attention)
        for layer in layers:
            layer._compiled_call_impl = None
