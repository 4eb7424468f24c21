"""Does the artifact say what the trained model said? Loaded from disk in a fresh process, with plain libraries.

The training process computes a few logits, writes the artifact and this check, and frees its model; the fresh process
loads the artifact as any user does, and compares.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from finetune_api.names import FailureClass
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_trainer.compute import Compute, compute_for
from finetune_trainer.errors import RunError, not_finite
from finetune_trainer.model import load_base
from finetune_trainer.reload_check import ReloadCheck

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
"""Largest difference of logits, relative to the largest logit, by compute precision: kernels may sum differently."""

MERGE_TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""The same between an adapter beside the base and merged into it, by the precision that the sum is rounded to."""

PROBE_TOKENS = 64
PROBE_ROWS = 4


@torch.no_grad()
def write_probe(model: PreTrainedModel, rows: Sequence[Sequence[int]], compute: Compute, path: Path) -> None:
    """What the model says about the starts of the first rows. Raises RunError (Diverged) where that is no numbers."""
    model.eval()
    tensors: dict[str, Tensor] = {}
    for number, row in enumerate(rows[:PROBE_ROWS]):
        ids = torch.tensor([list(row[:PROBE_TOKENS])])
        tensors[f"ids.{number}"] = ids
        logits = tensors[f"logits.{number}"] = _logits(model, ids, compute)
        if not bool(logits.isfinite().all()):
            raise not_finite("the logits of the tuned model are not all finite")
    save_file(tensors, path)


def run_check(check: ReloadCheck) -> float:
    """Load and compare; returns the largest difference, relative to the largest logit.

    Raises RunError (ArtifactMismatch) above the tolerance.
    """
    compute = compute_for(check.gpus, check.threads)
    return check_probe(_load(check, compute), Path(check.probe), compute, TOLERANCES[compute.dtype], "loaded")


def check_probe(model: PreTrainedModel, path: Path, compute: Compute, tolerance: float, how: str) -> float:
    """Whether `model` says what the probe says; returns the largest difference, relative to the largest logit.

    Raises RunError (ArtifactMismatch) above `tolerance`; `how` says what was done to the model, such as `merged`.
    """
    model.eval()
    probe = load_file(path)
    count = sum(name.startswith("ids.") for name in probe)
    difference = max(_difference(model, probe, number, compute) for number in range(count))
    if not difference <= tolerance:
        by_how_much = f"logits differ by {difference:.3g} of the largest, and {tolerance:g} is allowed"
        message = f"the model once {how} is another: {by_how_much}"
        raise RunError(FailureClass.INFRASTRUCTURE, "ArtifactMismatch", message)
    return difference


def _load(check: ReloadCheck, compute: Compute) -> PreTrainedModel:
    dtype: torch.dtype = getattr(torch, check.weights)
    if check.base is None:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            check.artifact,
            dtype=dtype,
            device_map={"": compute.device},
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=check.trusted,
        )
        return model
    base = load_base(Path(check.base), check.quantization, dtype, compute.device, check.trusted)
    tuned: PreTrainedModel = PeftModel.from_pretrained(base, check.artifact).get_base_model()
    return tuned


@torch.no_grad()
def _difference(model: PreTrainedModel, probe: dict[str, Tensor], number: int, compute: Compute) -> float:
    wanted = probe[f"logits.{number}"]
    found = _logits(model, probe[f"ids.{number}"], compute)
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))


def _logits(model: PreTrainedModel, ids: Tensor, compute: Compute) -> Tensor:
    with compute.autocast():
        logits: Tensor = model(input_ids=ids.to(compute.device), use_cache=False).logits
    return logits[0].float().cpu().contiguous()
