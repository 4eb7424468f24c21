"""Tensors that several processes hold in parts: the part here, the whole, and a part of a whole.

A tensor that is in one piece is its own part and its own whole.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on the device. The processes that hold parts call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_copy(tensor: Tensor, kept: bool = True) -> Tensor:
    """A copy of all of it in main memory; empty where it is not `kept`, since every process would hold everything.

    With a storage of its own: safetensors refuses tensors that share one.
    """
    found = whole(tensor.detach())
    return found.to("cpu", copy=True).contiguous() if kept else torch.empty(0)


def part_of(found: Tensor, like: Tensor) -> Tensor:
    """What this process holds of `found`, a whole tensor that all processes have, where `like` is in parts.

    A tensor of another shape than `like`, such as an optimizer's count of steps, is in one piece everywhere.
    """
    if not isinstance(like, DTensor) or found.shape != like.shape:
        return found
    device = like.to_local().device
    return distribute_tensor(found.to(device), like.device_mesh, like.placements, src_data_rank=None)
