"""LoRA adapters on a model: how they are attached, and continued. Source: Hu et al. 2021, arXiv 2106.09685."""

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from finetune_api.names import FailureClass
from finetune_api.training import Lora
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from pydantic.alias_generators import to_camel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_trainer.errors import RunError, quoted
from finetune_trainer.saved_modules import resolve_saved, train_in_fp32
from finetune_trainer.targets import ALL_LINEAR, ends_with, expert_weights, linear_modules, resolve_targets

ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"


def attach_adapter(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """The model with a fresh adapter, fp32; its start depends on `seed` alone. The base is frozen.

    Raises RunError (InvalidConfig) as `resolve_targets` and `resolve_saved`, ModulesToSaveInvalid.
    """
    targets, saved = resolve_targets(model, lora), resolve_saved(model, lora.modules_to_save)
    _check_something_is_left(_targeted(model, targets.modules, targets.parameters), saved.names)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets.modules,
        target_parameters=targets.parameters or None,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        modules_to_save=saved.names or None,
        ensure_weight_tying=saved.tied,
        bias="none",
        task_type=TaskType.CAUSAL_LM,
        fan_in_fan_out=any(_is_transposed(module) for module in model.modules()),
    )
    torch.manual_seed(seed)
    return _attached(model, config)


def _check_something_is_left(targeted: set[str], saved: list[str]) -> None:
    """PEFT adapts no module that is trained whole."""
    if all(path.endswith(tuple(saved)) for path in targeted):
        message = "method.lora.modulesToSave names every module that targetModules does, so that none gets an adapter"
        remedy = "Name each module in one of the two, or set method.type to full."
        raise RunError(FailureClass.INVALID_CONFIG, "ModulesToSaveInvalid", message, remedy)


def continue_adapter(model: PreTrainedModel, folder: Path, asked: Lora | None) -> PeftModel:
    """The model with the adapter of `folder`, trained further.

    Raises RunError (InvalidConfig): AdapterMismatch where `asked` describes another adapter than the one there is,
    AdapterInvalid where its weights are not those of its config.
    """
    tuned = adapter_without_weights(model, folder, asked)
    try:
        found = set_peft_model_state_dict(tuned, load_file(folder / ADAPTER_WEIGHTS_FILE))
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise _misfit(str(error)) from error
    missing = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad} & {*found.missing_keys}
    if missing or found.unexpected_keys:
        raise _misfit(f"missing {quoted(missing, most=2)}, without use {quoted(found.unexpected_keys, most=2)}")
    return tuned


def adapter_without_weights(model: PreTrainedModel, folder: Path, asked: Lora | None) -> PeftModel:
    """As `continue_adapter`, but for the adapter's weights: its shape alone, also for a model on the meta device."""
    config = _stored_config(folder)
    _check_same(model, config, asked)
    config.inference_mode, config.base_model_name_or_path = False, None
    return _attached(model, config)


def uses_dora(asked: Lora | None, folder: Path | None) -> bool:
    """Whether the adapter to train is a DoRA one: that of the folder, where there is one, else the one asked for."""
    return bool(_stored_config(folder).use_dora) if folder else (asked or Lora()).dora


def _stored_config(folder: Path) -> LoraConfig:
    try:
        found = LoraConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise _misfit(f"adapter_config.json cannot be read: {error}") from error
    if not isinstance(found, LoraConfig):  # PEFT gives what the file says.
        raise _misfit(f"adapter_config.json is that of another kind of adapter, {type(found).__name__}")
    return found


def _attached(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    tuned = get_peft_model(model, config)
    train_in_fp32(tuned)
    # PEFT keeps sets, which would be written in another order each time.
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules or [])
    config.target_parameters = sorted(config.target_parameters or []) or None
    return tuned


def _is_transposed(module: nn.Module) -> bool:
    """GPT-2's linear layers, and what bitsandbytes puts in their place: the adapter fits the unquantised base, too."""
    return isinstance(module, Conv1D) or getattr(module, "source_cls", None) is Conv1D


def _check_same(model: PreTrainedModel, config: LoraConfig, asked: Lora | None) -> None:
    """Every field of method.lora against the adapter's own; names may differ where they mean the same modules."""
    if asked is None:
        return
    there = Lora.model_construct(
        rank=config.r,
        alpha=float(config.lora_alpha),
        dropout=float(config.lora_dropout),
        dora=config.use_dora,
        rslora=config.use_rslora,
        target_modules=[*_listed(config.target_modules), *_listed(config.target_parameters)],
        modules_to_save=_listed(config.modules_to_save),
    )
    differing = [field for field in Lora.model_fields if getattr(asked, field) != getattr(there, field)]
    if "target_modules" in differing and _same_targets(model, config, asked):
        differing.remove("target_modules")
    if "modules_to_save" in differing and _same_saved(model, config, asked):
        differing.remove("modules_to_save")
    if not differing:
        return
    described = "; ".join(
        f"{to_camel(field)} {_shown(getattr(asked, field))}, but the adapter has {_shown(getattr(there, field))}"
        for field in differing
    )
    message = f"method.lora asks for another adapter than the one to train further: {described}"
    remedy = "Leave method.lora out, or start from a merged model."
    raise RunError(FailureClass.INVALID_CONFIG, "AdapterMismatch", message, remedy)


def _same_targets(model: PreTrainedModel, config: LoraConfig, asked: Lora) -> bool:
    wanted = resolve_targets(model, asked)
    there = config.target_modules
    if there == ALL_LINEAR:
        there = resolve_targets(model, Lora()).modules
    return _targeted(model, wanted.modules, wanted.parameters) == _targeted(model, there, config.target_parameters)


def _targeted(model: PreTrainedModel, modules: str | Iterable[str], parameters: Iterable[str] | None) -> set[str]:
    """Paths of what PEFT adapts: a text is a pattern of whole paths."""
    linear, names = linear_modules(model), list(parameters or [])
    experts = {path for path in expert_weights(model) if any(ends_with(path, name) for name in names)}
    if isinstance(modules, str):
        return experts | {path for path in linear if re.fullmatch(modules, path)}
    names = list(modules)
    return experts | {path for path in linear if any(ends_with(path, name) for name in names)}


def _same_saved(model: PreTrainedModel, config: LoraConfig, asked: Lora) -> bool:
    return sorted(resolve_saved(model, asked.modules_to_save).names) == _listed(config.modules_to_save)


def _listed(names: str | Iterable[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else sorted(names or [])


def _shown(value: float | list[str]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value, most=8) if isinstance(value, list) else f"{value:g}"


def _misfit(why: str) -> RunError:
    message = f"the adapter's weights do not fit its config and this base: {why}"
    remedy = "Use an artifact as it was published, on the base that its lock file names."
    return RunError(FailureClass.INVALID_CONFIG, "AdapterInvalid", message, remedy)
