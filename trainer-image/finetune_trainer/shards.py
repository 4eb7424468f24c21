"""A model in shards: each process of a team holds a part of every weight, its gradient and its optimizer state.

FSDP2 brings the weights of one layer together while that layer computes, and sums the gradients over all processes.
Source: Zhao et al. 2023, arXiv 2304.11277. The parts are fp32; they travel and compute in the run's precision.
"""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from finetune_trainer.compute import Compute
from finetune_trainer.layers import layers_of
from finetune_trainer.loss import LossModel
from finetune_trainer.memory import WEIGHT_BYTES, Gathered


def shard(loss: LossModel, compute: Compute, processes: int) -> None:
    """Cut every weight into parts, in place; all processes call it with the same weights.

    Layer by layer, and one group for what is left: embeddings, the last norm, and the head, which may be the same
    tensor as the embeddings. From then on the model computes inside the forward of `loss` alone.
    """
    mesh = init_device_mesh(compute.device.type, (processes,))
    dtype = None if compute.dtype == torch.float32 else compute.dtype
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in (*layers_of(loss.model), loss):
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
        # The loss is divided by the tokens of all processes already, so gradients are summed and not averaged.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)


def gathered(loss: LossModel, compute: Compute) -> Gathered:
    """Whole weights and gradients at the fullest moment of a step, for the groups that `shard` makes.

    Of layers two are whole, the one that computes and the next; and the gradient of one, in fp32, on its way to the
    others. What belongs to no layer stays whole from its forward to the end of the backward pass, and so does
    its gradient. Source: torch.distributed.fsdp, `fully_shard`: prefetching, `reshard_after_forward` of the root.
    """
    layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers_of(loss.model)]
    rest = sum(parameter.numel() for parameter in loss.parameters()) - sum(layers)
    size = compute.dtype.itemsize
    return Gathered(rest * 2 * size + max(layers, default=0) * (2 * size + WEIGHT_BYTES), compute.dtype)
