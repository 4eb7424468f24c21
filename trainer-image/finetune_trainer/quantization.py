"""The frozen base in 8 or 4 bits: how it is stored, and whether this device and this model can do it."""

from collections.abc import Iterator

import torch
from finetune_api.names import FailureClass
from finetune_api.training import Quantization
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_trainer.errors import RunError, quoted
from finetune_trainer.targets import expert_weights, linear_modules

MOST_UNQUANTISED = 0.1
"""Largest share of a model's matrices that may stay as they are: above it, a user gets not what was asked for."""


STORED_BYTES = {Quantization.INT8: 1.0, Quantization.NF4: 0.5 + 0.127 / 8}
"""Of a quantised weight, its share of the scales included. Source: Dettmers et al. 2023, section 3."""


def quantization_config(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How bitsandbytes stores the frozen base. Source: Dettmers et al. 2023, arXiv 2305.14314."""
    if quantization is Quantization.INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    if quantization is Quantization.NF4:
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    return None


def check_device(quantization: Quantization, device: torch.device) -> None:
    """Quantise one small matrix before any weight is loaded: not every CPU and GPU can.

    Raises RunError (InvalidConfig, QuantizationUnsupported).
    """
    import bitsandbytes.functional as quantise

    sample: Tensor = torch.ones(64, 64, dtype=torch.float16, device=device)
    try:
        if quantization is Quantization.INT8:
            quantise.int8_vectorwise_quant(sample)
        else:
            quantise.quantize_4bit(sample, quant_type="nf4")
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        message = f"method.quantization {quantization} does not run on this {device.type}: {error}"
        raise _unsupported(message, "Set method.quantization to none, or run on a GPU.") from error


def check_dora(quantization: Quantization, device: torch.device) -> None:
    """An adapter with DoRA asks bitsandbytes for a layer's weights, which on a CPU takes int8 layers their scales.

    Raises RunError (InvalidConfig, QuantizationUnsupported): training would fail in its second step.
    """
    if quantization is Quantization.INT8 and device.type == "cpu":
        message = "method.lora.dora with method.quantization int8 does not run on a CPU: bitsandbytes loses its scales"
        raise _unsupported(message, "Set method.quantization to nf4 or none, or run on a GPU.")


def check_model(model: PreTrainedModel, quantization: Quantization) -> None:
    """Whether bitsandbytes would reach the matrices of this model: it replaces plain linear layers and nothing else.

    Raises RunError (InvalidConfig, QuantizationUnsupported) with the share that would stay as it is.
    """
    linear = _linear_below_head(model)
    left = {path for path, module in linear.items() if not _is_replaced(module)} | expert_weights(model).keys()
    sizes = {path: parameter.numel() for path, parameter in model.named_parameters()}
    sizes |= {path: sizes[f"{path}.weight"] for path in linear}
    unreached = sum(sizes[path] for path in left)
    share = unreached / max(sum(sizes[path] for path in left | linear.keys()), 1)
    if share > MOST_UNQUANTISED:
        names = {".".join(path.split(".")[-2:]) for path in left}
        message = (
            f"method.quantization {quantization} would leave {100 * share:.0f} % of the matrices of this "
            f"{model.config.model_type} model as they are: {quoted(names, most=4)}"
        )
        raise _unsupported(message, "Set method.quantization to none, or choose a dense model.")


def quantised_away(model: PreTrainedModel, quantization: Quantization) -> int:
    """Bytes by which the weights of this model, not quantised yet, become smaller."""
    if quantization is Quantization.NONE:
        return 0
    linear = [module for module in _linear_below_head(model).values() if _is_replaced(module)]
    weights = [module.get_parameter("weight") for module in linear]
    return int(sum(weight.numel() * (weight.element_size() - STORED_BYTES[quantization]) for weight in weights))


def keep_as_stored(model: PreTrainedModel) -> None:
    """On CPUs with AVX-512 bf16, bitsandbytes repacks a 4-bit layer the first time it is used without gradients, and
    rounds its scales. Off: the base that is measured, the one that is trained on and the one loaded again are one."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quantised_shapes(model: PreTrainedModel) -> Iterator[tuple[str, torch.Size, torch.Size]]:
    """Each quantised weight's name, the shape it was quantised from, and the one that its module has."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and hasattr(module, "source_cls"):
            state = getattr(module.weight, "quant_state", None)  # Of 4 bits, which lie in one column.
            stored = module.weight.shape if state is None else state.shape
            yield f"{path}.weight", stored, torch.Size([module.out_features, module.in_features])


def _linear_below_head(model: PreTrainedModel) -> dict[str, nn.Module]:
    head = model.get_output_embeddings()
    return {path: module for path, module in linear_modules(model).items() if module is not head}


def _is_replaced(module: nn.Module) -> bool:
    """As transformers decides: a subclass may compute something else."""
    return isinstance(module, Conv1D) or type(module) is nn.Linear


def _unsupported(message: str, remedy: str) -> RunError:
    return RunError(FailureClass.INVALID_CONFIG, "QuantizationUnsupported", message, remedy)
