"""A model in shards: each process of a team holds a part of every weight, its gradient and its optimizer state.

FSDP2 brings the weights of one layer together while that layer computes, and sums the gradients over all processes.
Source: Zhao et al. 2023, arXiv 2304.11277. The parts are fp32; they travel and compute in the run's precision.
"""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import Module
from transformers import PreTrainedModel

from finetune_trainer.compute import Compute
from finetune_trainer.loss import LossModel


def shard(loss: LossModel, compute: Compute, processes: int) -> None:
    """Cut every weight into parts, in place; all processes call it with the same weights.

    Layer by layer, and one group for what is left: embeddings, the last norm, and the head, which may be the same
    tensor as the embeddings. From then on the model computes inside the forward of `loss` alone.
    """
    mesh = init_device_mesh(compute.device.type, (processes,))
    dtype = None if compute.dtype == torch.float32 else compute.dtype
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in (*_layers(loss.model), loss):
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
        # The loss is divided by the tokens of all processes already, so gradients are summed and not averaged.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)


def _layers(model: PreTrainedModel) -> list[Module]:
    """The modules that transformers keeps in one piece: the decoder's layers."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]
