"""The model of a run: loading the base, attaching or continuing an adapter, and the form that is published."""

import json
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from finetune_api.names import FailureClass
from finetune_api.resource import TrainingSpec
from finetune_api.training import Lora, Method, MethodType, Quantization
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from finetune_trainer.adapter import adapter_without_weights, attach_adapter, continue_adapter, uses_dora
from finetune_trainer.batch import Packing
from finetune_trainer.compute import Compute
from finetune_trainer.errors import RunError, not_finite, quoted
from finetune_trainer.model_config import check_own_code, read_config
from finetune_trainer.probe import UNPACKED, find_packing
from finetune_trainer.quantization import (
    check_device,
    check_dora,
    check_model,
    keep_as_stored,
    quantised_away,
    quantised_shapes,
    quantization_config,
)
from finetune_trainer.saved_modules import check_not_quantised
from finetune_trainer.targets import resolve_targets

CONVERSION_WORDS = "automatic conversion of the weights"
"""How transformers tells of whatever goes wrong while it quantises or fuses weights as it reads them."""

Model: TypeAlias = PreTrainedModel | PeftModel
"""A whole model, or one with an adapter."""


@dataclass(frozen=True)
class ModelCheck:
    """What a model turned out to be, seen without its weights."""

    parameters: int
    trainable: int
    """How many parameters are trained."""
    vocabulary: int
    """Ids from 0 that it has an embedding for."""
    packing: bool
    """Whether rows are packed: asked for, and possible."""
    warnings: list[str]
    """What a user should know and need not mend."""


def check_on_meta(folder: Path, training: TrainingSpec, adapter: Path | None = None) -> ModelCheck:
    """Build the model without its weights, and look at it.

    Raises RunError (InvalidConfig): ModelInvalid, ModelUnsupported, RemoteCodeForbidden, QuantizationUnsupported,
    NoTrainableParameters, and as `attach_adapter` and `continue_adapter`.
    """
    model, method = _on_meta(folder, training.model.trust_remote_code), training.method
    end_ids(folder, [])  # Asked for when all is loaded, and by then too late to refuse.
    parameters = sum(parameter.numel() for parameter in model.parameters())
    vocabulary = model.get_input_embeddings().weight.shape[0]
    wanted = training.hyperparameters.packing
    packing = wanted and find_packing(model, Compute(torch.device("cpu"), torch.float32)) is not Packing.NONE
    warnings = [UNPACKED] if wanted and not packing else []
    if method.type is MethodType.LORA:
        warnings += _check_adapter(model, method, adapter)
    with torch.device("meta"):
        trainable = trained_count(_without_weights(model, method, adapter))
    return ModelCheck(parameters, trainable, vocabulary, packing, warnings)


@dataclass(frozen=True)
class Shapes:
    """A model as a GPU trains it, without its weights: on the meta device."""

    model: Model
    quantised_away: int
    """Bytes that its weights are smaller by, since they are quantised."""


def shapes_on_gpu(folder: Path, training: TrainingSpec, adapter: Path | None = None) -> Shapes:
    """As `load_model` on a GPU that computes in bf16. Raises as `check_on_meta`."""
    base, method = _on_meta(folder, training.model.trust_remote_code), training.method
    base = base.to(torch.float32 if method.type is MethodType.FULL else torch.bfloat16)
    smaller = quantised_away(base, method.quantization)
    with torch.device("meta"):
        return Shapes(_without_weights(base, method, adapter), smaller)


def _on_meta(folder: Path, trusted: bool) -> PreTrainedModel:
    config = _config(folder, trusted)
    with torch.device("meta"):
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
        except ValueError as error:
            raise _unsupported(f"the model ({config.model_type}) is not a decoder that generates text") from error
        except Exception as error:  # Whatever a value of the config makes of the code that takes it.
            raise _unusable("config.json", error) from error
    return model


def _check_adapter(model: PreTrainedModel, method: Method, adapter: Path | None) -> list[str]:
    """What method.quantization rules out, and the warnings about a fresh adapter."""
    lora = method.lora or Lora()
    if method.quantization is not Quantization.NONE:
        check_model(model, method.quantization)
        check_not_quantised(model, lora.modules_to_save)
    return resolve_targets(model, lora).warnings if adapter is None else []


def load_model(
    folder: Path, method: Method, seed: int, compute: Compute, adapter: Path | None = None, trusted: bool = False
) -> Model:
    """The base of `folder` with what the method trains on it, on the device; `trusted`: its own code may run.

    Full: fp32 weights, an `adapter` merged in. LoRA: a frozen base, quantised or in the compute precision, with a
    fresh adapter or the one of the folder `adapter`, fp32. Raises RunError as `check_on_meta`, QuantizationUnsupported.
    """
    dtype = torch.float32 if method.type is MethodType.FULL else compute.dtype
    if method.type is MethodType.LORA and uses_dora(method.lora, adapter):
        check_dora(method.quantization, compute.device)
    base = load_base(folder, method.quantization, dtype, compute.device, trusted)
    model = _with_method(base, method, seed, adapter)
    trained_count(model)  # A quantised base may hold other modules than the one that prepare saw.
    return model


def load_base(
    folder: Path, quantization: Quantization, dtype: torch.dtype, device: torch.device, trusted: bool = False
) -> PreTrainedModel:
    """The weights of a folder on the device.

    Raises RunError (InvalidConfig, ModelInvalid) where they are not whole: transformers fills gaps with random numbers,
    and quantises what has another shape.
    """
    if quantization is not Quantization.NONE:
        check_device(quantization, device)
    model: PreTrainedModel
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            quantization_config=quantization_config(quantization, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trusted,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise _not_whole(f"cannot be read: {error}") from error
    except RuntimeError as error:
        if CONVERSION_WORDS not in str(error):
            raise
        raise _not_converted(device) from error
    _check_whole(model, found)
    keep_as_stored(model)
    return model


def _check_whole(model: PreTrainedModel, found: dict[str, Any]) -> None:
    """Raise RunError where a parameter was not in the files, by what transformers `found`, or in another shape."""
    missing = sorted({name for name, _ in model.named_parameters()} & {*found["missing_keys"]})
    if missing:
        raise _not_whole(f"lack {quoted(missing, most=3)}")
    mismatched = found["mismatched_keys"] | {each for each in quantised_shapes(model) if each[1] != each[2]}
    if mismatched:
        name, stored, wanted = min(mismatched)
        raise _not_whole(f"hold {name} as {list(stored)}, and config.json wants {list(wanted)}")


def _not_converted(device: torch.device) -> RunError:
    """Memory that runs out meanwhile is told in the same words, so the allocator is asked."""
    if device.type == "cuda" and torch.cuda.memory_stats(device)["num_ooms"]:
        message = "the GPU has no memory left while the weights of the model are read"
        return RunError(FailureClass.GPU_OUT_OF_MEMORY, "GpuOutOfMemory", message)
    return _not_whole("hold tensors of another shape than config.json wants")


def _not_whole(what: str) -> RunError:
    message, remedy = (
        f"the weights of the model {what}",
        "Upload the model again, with the config.json it was saved with.",
    )
    return RunError(FailureClass.INVALID_CONFIG, "ModelInvalid", message, remedy)


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


def stored_dtype(folder: Path, trusted: bool = False) -> torch.dtype:
    """The precision that the base's weights are stored in, which is the artifact's too."""
    found = _config(folder, trusted).dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def end_ids(folder: Path, end_tokens: list[int]) -> list[int]:
    """Where generation stops: the run's end tokens, then those of the base's generation config and config.

    Raises RunError (InvalidConfig, ModelInvalid) for a file that does not tell.
    """
    found = [*end_tokens, *_told_ends(folder / "generation_config.json"), *_told_ends(folder / "config.json")]
    return list(dict.fromkeys(found))


def _told_ends(path: Path) -> list[int]:
    if not path.is_file():
        return []
    try:
        told = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        return [operator.index(each) for each in (told if isinstance(told, list) else [told]) if each is not None]
    except (ValueError, AttributeError, TypeError) as error:
        raise _unusable(path.name, error) from error


@torch.no_grad()
def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round all weights to `dtype` in place, so that what is evaluated is what will be stored."""
    for tensor in model.parameters():
        tensor.copy_(tensor.to(dtype))


def adapted_base(folder: Path, adapter: Path, compute: Compute, trusted: bool = False) -> PeftModel:
    """The unquantised base of `folder`, fp32, with the adapter just trained beside its weights."""
    base = load_base(folder, Quantization.NONE, torch.float32, compute.device, trusted)
    return PeftModel.from_pretrained(base, str(adapter))


def merged_model(adapted: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """The adapter merged in, rounded to `dtype`. Raises RunError (Diverged) where the sum is not finite."""
    try:
        model = merge(adapted)
    except ValueError as error:
        raise not_finite(f"the adapter cannot be merged: {error}") from error
    round_weights(model, dtype)
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
        model = base if adapter is None else merge(continue_adapter(base, adapter, asked=None))
        return model.requires_grad_(True)
    if adapter is not None:
        return continue_adapter(base, adapter, method.lora)
    return attach_adapter(base, method.lora or Lora(), seed)


def _config(folder: Path, trusted: bool) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    except (ValueError, KeyError, OSError, ImportError) as error:
        check_own_code(read_config(folder, "the model"), "the model", trusted)
        raise _unsupported(f"transformers does not know this model: {error}") from error
    except Exception as error:  # Each kind of config checks its values in its own way.
        raise _unusable("config.json", error) from error


def _unusable(name: str, error: Exception) -> RunError:
    message = f"{name} of the model cannot be used: {type(error).__name__}: {error}"
    return RunError(FailureClass.INVALID_CONFIG, "ModelInvalid", message, f"Correct {name}, or choose another model.")


def _unsupported(message: str) -> RunError:
    return RunError(
        FailureClass.INVALID_CONFIG, "ModelUnsupported", message, "Choose a causal language model in model.uri."
    )
