"""What training will take on a GPU that is not here: whether it fits, and how long it will be.

The planner makes the plan that training will make, from a model without weights. Its step is that of a CPU in the GPU's
precision: attention that copies the rows of a batch counts a little more than the GPU's kernel takes.
"""

from dataclasses import KW_ONLY, dataclass, replace

import torch
from finetune_api.findings import EffectiveHyperparameters, PlanStatus, TrainingEstimate
from finetune_api.run import GpuSize, RunSpec
from transformers import PreTrainedModel

from finetune_trainer.batch import Packing
from finetune_trainer.compute import Compute
from finetune_trainer.fetch import ModelFiles
from finetune_trainer.flops import operations_per_token
from finetune_trainer.loop import Settings
from finetune_trainer.loss import LossModel
from finetune_trainer.measure import Engine
from finetune_trainer.memory import Footprint
from finetune_trainer.model import bare, shapes_on_gpu
from finetune_trainer.parallel import Team
from finetune_trainer.plan import Memory, Rung, gib, training_seconds
from finetune_trainer.planning import Planner
from finetune_trainer.prepared import Prepared
from finetune_trainer.probe import find_packing
from finetune_trainer.speed import speed_of

ON_GPU = Compute(torch.device("cpu"), torch.bfloat16)
"""How the GPU computes, on tensors that this machine can have."""

TRIED_ON = Compute(torch.device("cpu"), torch.float32)
"""How it is tried out whether rows can be packed."""

LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Fields of configs of models that change their logits, and so need them whole. Without weights it cannot be tried."""


@dataclass(frozen=True)
class PlannerAhead(Planner):
    """A planner for a GPU that is not here."""

    _: KW_ONLY
    gpu: GpuSize
    quantised_away: int
    """Bytes that the weights will be smaller by."""

    def _memory(self) -> Memory:
        size = self.gpu.memory_bytes
        source = f"GPU {self.gpu.name}" + (f", {gib(size)}" if size else "")
        return Memory(size, source, "choose a bigger GPU (trainer.nodeSelector)")

    def _footprint(self, rung: Rung) -> Footprint | None:
        found = super()._footprint(rung)
        # A checkpoint of a GPU lies in main memory.
        return found and replace(found, weights=found.weights - self.quantised_away, snapshot=0)


def foresee(spec: RunSpec, gpu: GpuSize, files: ModelFiles, prepared: Prepared) -> PlanStatus:
    """The plan on this GPU, but for compiling, which only the GPU itself can tell of.

    Raises RunError (InvalidConfig, NotEnoughMemory) where not even one row fits.
    """
    effective = prepared.index.effective_hyperparameters
    shapes = shapes_on_gpu(files.model.folder, spec.training, files.adapter)
    inner = bare(shapes.model)
    loss = LossModel(inner, _has_plain_head(inner), ON_GPU.autocast)
    packing = find_packing(inner, TRIED_ON) if effective.packing else Packing.NONE
    engine = Engine(shapes.model, inner, loss, ON_GPU, packing, Team(size=spec.devices))
    settings = Settings.of(effective)
    planner = PlannerAhead(spec, engine, prepared.train, settings, gpu=gpu, quantised_away=shapes.quantised_away)
    return planner.plan(lambda lines: None).status


def training_estimate(gpu: GpuSize, prepared: Prepared) -> TrainingEstimate | None:
    """How long training will take; None for a GPU that nobody has heard of."""
    found, data, speed = prepared.index.resolved, prepared.index.data, speed_of(gpu.name)
    if speed is None:
        return None
    per_token = operations_per_token(found.parameters or 0, found.trainable_parameters or 0)
    passes = _passes(prepared.index.effective_hyperparameters, data.sequences)
    seconds = training_seconds(per_token * data.tokens * passes, speed)
    return TrainingEstimate(gpu=gpu.name, gpu_seconds=round(seconds))


def _passes(effective: EffectiveHyperparameters, sequences: int) -> float:
    """How often the rows are gone through."""
    settings = Settings.of(effective)
    return settings.total_steps / -(-sequences // settings.effective_batch)


def _has_plain_head(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    return all(getattr(config, name, None) in (None, 1) for name in LOGIT_CHANGES)
