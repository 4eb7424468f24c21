"""The model of a run: loading the base, attaching or continuing an adapter, and the form that is published."""

import json
from pathlib import Path
from typing import TypeAlias

import torch
from finetune_api.names import FailureClass
from finetune_api.resource import Lora, Method, MethodType, Quantization, TrainingSpec
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from finetune_trainer.adapter import adapter_without_weights, attach_adapter, continue_adapter
from finetune_trainer.compute import Compute
from finetune_trainer.errors import RunError, not_finite

Model: TypeAlias = PreTrainedModel | PeftModel
"""A whole model, or one with an adapter."""


def check_on_meta(folder: Path, training: TrainingSpec, adapter: Path | None = None) -> tuple[int, int]:
    """Build the model without its weights; returns its parameters and how many of them are trained.

    Raises RunError (InvalidConfig): ModelUnsupported, TargetModulesNotFound, NoTrainableParameters.
    """
    config = _config(folder)
    with torch.device("meta"):
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except ValueError as error:
            raise _unsupported(f"the model ({config.model_type}) is not a decoder that generates text") from error
        parameters = sum(parameter.numel() for parameter in model.parameters())
        trainable = trained_count(_without_weights(model, training.method, adapter))
    return parameters, trainable


def load_model(folder: Path, method: Method, seed: int, compute: Compute, adapter: Path | None = None) -> Model:
    """The base of `folder` with what the method trains on it, on the device.

    Full: fp32 weights, an `adapter` merged in. LoRA: a frozen base, quantised or in the compute precision, with a
    fresh adapter or the one of the folder `adapter`, fp32. Raises RunError as `check_on_meta`, QuantizationUnsupported.
    """
    dtype = torch.float32 if method.type is MethodType.FULL else compute.dtype
    base = load_base(folder, method.quantization, dtype, compute.device)
    return _with_method(base, method, seed, adapter)


def load_base(folder: Path, quantization: Quantization, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The weights of a folder on the device."""
    if quantization is not Quantization.NONE:
        _check_quantization(quantization, device)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": device},
        quantization_config=quantization_config(quantization, dtype),
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    _keep_as_stored(model)
    return model


def quantization_config(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How bitsandbytes stores the frozen base. Source: Dettmers et al. 2023, arXiv 2305.14314."""
    if quantization is Quantization.INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    if quantization is Quantization.NF4:
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    return None


def trained_count(model: Model) -> int:
    """Number of trained parameters; RunError (NoTrainableParameters) where there are none."""
    count: int = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if count == 0:
        message = "no parameter of the model would be trained"
        remedy = "Name other modules in method.lora.targetModules, or all-linear."
        raise RunError(FailureClass.INVALID_CONFIG, "NoTrainableParameters", message, remedy)
    return count


def bare(model: Model) -> PreTrainedModel:
    """The transformers model itself; an adapter stays in it, inside its linear modules."""
    inner: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return inner


def stored_dtype(folder: Path) -> torch.dtype:
    """The precision that the base's weights are stored in, which is the artifact's too."""
    found = _config(folder).dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def end_ids(folder: Path, end_tokens: list[int]) -> list[int]:
    """Where generation stops: the run's end tokens, then those of the base's generation config and config."""
    found = list(end_tokens)
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return list(dict.fromkeys(found))


@torch.no_grad()
def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round all weights to `dtype` in place, so that what is evaluated is what will be stored."""
    for tensor in model.parameters():
        tensor.copy_(tensor.to(dtype))


def merged_model(folder: Path, adapter: Path, compute: Compute) -> PreTrainedModel:
    """The unquantised base of `folder` with the adapter just trained merged in, rounded to the base's precision.

    Raises RunError (Diverged) where the sum is not finite.
    """
    base = load_base(folder, Quantization.NONE, torch.float32, compute.device)
    try:
        model = merge(PeftModel.from_pretrained(base, str(adapter)))
    except ValueError as error:
        raise not_finite(f"the adapter cannot be merged: {error}") from error
    round_weights(model, stored_dtype(folder))
    return model


def merge(model: PeftModel) -> PreTrainedModel:
    """The adapter added into the weights, and gone as a module. Raises ValueError where the sum is not finite."""
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return merged


def _without_weights(base: PreTrainedModel, method: Method, adapter: Path | None) -> Model:
    if method.type is MethodType.FULL:
        return base.requires_grad_(True)
    if adapter is not None:
        return adapter_without_weights(base, adapter, method.lora)
    return attach_adapter(base, method.lora or Lora(), seed=0)


def _with_method(base: PreTrainedModel, method: Method, seed: int, adapter: Path | None) -> Model:
    if method.type is MethodType.FULL:
        model = base if adapter is None else merge(PeftModel.from_pretrained(base, str(adapter)))
        return model.requires_grad_(True)
    if adapter is not None:
        return continue_adapter(base, adapter, method.lora)
    return attach_adapter(base, method.lora or Lora(), seed)


def _config(folder: Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise _unsupported(f"transformers does not know this model: {error}") from error


def _check_quantization(quantization: Quantization, device: torch.device) -> None:
    """Quantise one small matrix before any weight is loaded: not every CPU and GPU can."""
    import bitsandbytes.functional as quantise

    sample: Tensor = torch.ones(64, 64, dtype=torch.float16, device=device)
    try:
        if quantization is Quantization.INT8:
            quantise.int8_vectorwise_quant(sample)
        else:
            quantise.quantize_4bit(sample, quant_type="nf4")
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        message = f"method.quantization {quantization} does not run on this {device.type}: {error}"
        remedy = "Set method.quantization to none, or run on a GPU."
        raise RunError(FailureClass.INVALID_CONFIG, "QuantizationUnsupported", message, remedy) from error


def _keep_as_stored(model: PreTrainedModel) -> None:
    """On CPUs with AVX-512 bf16, bitsandbytes repacks a 4-bit layer the first time it is used without gradients, and
    rounds its scales. Off: the base that is measured, the one that is trained on and the one loaded again are one."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _unsupported(message: str) -> RunError:
    return RunError(
        FailureClass.INVALID_CONFIG, "ModelUnsupported", message, "Choose a causal language model in model.uri."
    )
