"""How much memory a training step takes, and how much there is.

The step runs once on tensors that have device, type and shape but no data. So the count knows every model family,
adapter and kernel without a formula for each, takes as long as calling the operators, and allocates nothing. What it
does not see is what a kernel allocates for itself and gives back before it returns.
"""

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from finetune_api.training import Optimizer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedModel

from finetune_trainer.batch import Batch

STATE_BYTES = {
    Optimizer.ADAMW: 8,
    Optimizer.ADAM: 8,
    Optimizer.ADAMW8BIT: 2,
    Optimizer.PAGED_ADAMW8BIT: 2,
    Optimizer.ADAFACTOR: 0,
    Optimizer.SGD: 0,
}
"""Optimizer state for each trained number: two moments in fp32 or 8 bits; adafactor keeps rows and columns alone."""


FIRST_STEP_BYTES = 192 * 2**20
"""Memory of a process that is no tensor, yet comes with its first step: code, thread buffers, gaps of the allocator.
Measured on CPU: 126 to 230 MiB."""

WEIGHT_BYTES = 4
"""Of a trained number: they are fp32."""


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made inside it, as long as each lives; views count once, and those of
    `existing` tensors not at all."""

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self._now = 0
        self._sizes: dict[int, int] = {}
        self._existing = {tensor.untyped_storage()._cdata for tensor in existing}

    def __torch_dispatch__(
        self, operator: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = operator(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self._enter(leaf.untyped_storage())
        return out

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes or key in self._existing:
            return
        self._sizes[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


@dataclass(frozen=True)
class Footprint:
    """Peak memory of training, in bytes, by what it is for."""

    weights: int
    optimizer: int
    step: int
    """Gradients, activations, logits and whatever else lives while a step is computed."""
    snapshot: int
    """What a checkpoint copies, and keeps while training goes on: on a GPU nothing, the copy is in main memory."""
    whole_weights: int = 0
    """Weights before they are cut into shards, and after training; none of the rest is there then."""

    @property
    def total(self) -> int:
        """At the fullest moment."""
        return max(self.weights + self.optimizer + self.step + self.snapshot, self.whole_weights)


@dataclass(frozen=True)
class Gathered:
    """What several processes bring together of the parts of a model while it computes."""

    bytes: int
    """Whole weights and gradients at the fullest moment of a step."""
    dtype: torch.dtype
    """Their precision."""


def footprint(loss: Module, batch: Batch, optimizer: Optimizer, device: torch.device, accumulating: bool) -> Footprint:
    """What training `loss` (batch -> scalar) takes in micro-batches of this size; `batch` is not read, only measured.

    `accumulating`: a step has several micro-batches, so that gradients are there while activations are. Raises
    RuntimeError or NotImplementedError for a model whose operators need the data itself, such as some routers.
    """
    trained = sum(parameter.numel() for parameter in loss.parameters() if parameter.requires_grad)
    return Footprint(
        weights=weight_bytes(loss),
        optimizer=trained * STATE_BYTES[optimizer],
        step=step_bytes(loss, batch, device, micro_batches=2 if accumulating else 1),
        snapshot=trained * (WEIGHT_BYTES + STATE_BYTES[optimizer]) if device.type == "cpu" else 0,
    )


def sharded_footprint(
    loss: Module, batch: Batch, optimizer: Optimizer, device: torch.device, processes: int, gathered: Gathered
) -> Footprint:
    """Of the first of several processes that each hold a part of every weight, all of which are trained: it makes the
    snapshot. Raises as `footprint`.
    """
    trained = sum(parameter.numel() for parameter in loss.parameters())
    gradients = trained * WEIGHT_BYTES // processes
    return Footprint(
        weights=weight_bytes(loss) // processes,
        optimizer=trained * STATE_BYTES[optimizer] // processes,
        step=step_bytes(loss, batch, device, gathered_in=gathered.dtype) + gradients + gathered.bytes,
        snapshot=trained * (WEIGHT_BYTES + STATE_BYTES[optimizer]) if device.type == "cpu" else 0,
        whole_weights=weight_bytes(loss),
    )


def weight_bytes(loss: Module) -> int:
    """Of all parameters and buffers, as they are stored."""
    return sum(tensor.numel() * tensor.element_size() for tensor in chain(loss.parameters(), loss.buffers()))


def step_bytes(
    loss: Module,
    batch: Batch,
    device: torch.device,
    micro_batches: int = 1,
    gathered_in: torch.dtype | None = None,
) -> int:
    """Peak of what forward and backward add to the weights, gradients included; a model on the meta device counts as if
    it were on `device`.

    `gathered_in`: the weights come in this precision, and each gradient goes as soon as it is whole, as with shards.
    """
    step = _Step(loss)
    with (
        _kept_tensors_restored(step),
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        _quantised_stood_in_for(step),
    ):

        def without_data(tensor: Tensor) -> Tensor:
            if not tensor.is_meta and gathered_in is None:
                return fake.from_tensor(tensor)
            dtype = gathered_in if gathered_in and tensor.is_floating_point() else tensor.dtype
            made = torch.empty(tensor.shape, dtype=dtype, device=device, requires_grad=tensor.requires_grad)
            if gathered_in and made.requires_grad:
                made.register_post_accumulate_grad_hook(_let_go)  # type: ignore[no-untyped-call]
            return made

        state = {name: without_data(x) for name, x in chain(step.named_parameters(), step.named_buffers())}
        shapes = _without_data(batch, device)
        ledger = Ledger(state.values())
        with ledger:
            for _ in range(micro_batches):
                functional_call(step, state, (shapes,))
    return ledger.peak


@contextmanager
def _kept_tensors_restored(model: Module) -> Iterator[None]:
    """Inside, modules may replace tensors that are neither parameters nor buffers, as rotations for long texts do."""
    before = [
        (module, {name: x for name, x in vars(module).items() if isinstance(x, Tensor)}) for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, tensors in before:
            for name in [name for name, x in vars(module).items() if isinstance(x, Tensor)]:
                delattr(module, name)
            vars(module).update(tensors)


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None


@contextmanager
def _quantised_stood_in_for(model: Module) -> Iterator[None]:
    """Inside, the quantised layers of bitsandbytes, which need data, only make what they would make in memory."""
    # By name, so that a run without them does not import bitsandbytes. PEFT's layers around them have the same names.
    layers: list[Any] = [module for module in model.modules() if type(module).__module__.startswith("bitsandbytes.")]
    for layer in layers:
        shape = (layer.out_features, layer.in_features)
        layer.forward = lambda x, shape=shape: _Dequantised.apply(x, shape)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class _Dequantised(torch.autograd.Function):
    """A frozen linear layer whose weights are restored for each product, forward and backward, and kept by neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """x (…, d_in), shape (d_out, d_in). Returns (…, d_out)."""
        ctx.shape = shape
        return functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Gradient of x."""
        (gradient,) = gradients
        return gradient @ gradient.new_empty(ctx.shape), None


class _Step(Module):
    """Forward and backward in one call: activations that are computed again need the weights there both times."""

    def __init__(self, loss: Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, batch: Batch) -> None:
        self.loss(batch).backward()


@contextmanager
def checkpointing(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Inside, each layer keeps its input alone and computes its activations again in the backward pass, if wanted.

    Not re-entrant: that form trains a frozen embedding's adapters too, and hands keyword arguments to the layers.
    """
    if not wanted:
        yield
        return
    model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


def available_bytes(device: torch.device, limit: int | None, weights: int) -> int | None:
    """Memory for weights and training: the device's, or what the pod's `limit` leaves beside the libraries.

    Without a limit, what the machine has left. None where this system does not tell.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    resident = _resident_bytes()
    if resident is None:
        return limit
    libraries = max(resident - weights, 0) + FIRST_STEP_BYTES
    return max((limit or _machine_bytes() + resident) - libraries, 0)


def _resident_bytes() -> int | None:
    """Memory of this process. Source: proc(5), /proc/self/statm."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else None


def _machine_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _without_data(batch: Batch, device: torch.device) -> Batch:
    def shape(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    return replace(
        batch,
        input_ids=shape(batch.input_ids),
        position_ids=shape(batch.position_ids),
        attention_mask=None if batch.attention_mask is None else shape(batch.attention_mask),
        layout=batch.layout and replace(batch.layout, offsets=shape(batch.layout.offsets)),
        positions=shape(batch.positions),
        targets=shape(batch.targets),
    )
