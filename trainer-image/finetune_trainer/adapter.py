"""LoRA adapters on a model: which modules, and how they are attached. Source: Hu et al. 2021, arXiv 2106.09685."""

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from finetune_api.names import FailureClass
from finetune_api.resource import Lora
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from pydantic.alias_generators import to_camel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_trainer.errors import RunError, quoted

ALL_LINEAR = "all-linear"
REGEX_PREFIX = "regex:"


def attach_adapter(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """The model with a fresh adapter, fp32; its start depends on `seed` alone. The base is frozen.

    Raises RunError (InvalidConfig): TargetModulesNotFound, TargetModulesInvalid.
    """
    targets = resolve_targets(model, lora.target_modules)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        bias="none",
        task_type=TaskType.CAUSAL_LM,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    paths = [path for path, _ in model.named_modules()]
    torch.manual_seed(seed)
    tuned = get_peft_model(model, config)
    # PEFT keeps a set of whole paths: hundreds of names, in another order each time.
    tuned.peft_config["default"].target_modules = shortest_names(set(tuned.targeted_module_names), paths)
    return tuned


def continue_adapter(model: PreTrainedModel, folder: Path, asked: Lora | None) -> PeftModel:
    """The model with the adapter of `folder`, trained further.

    Raises RunError (InvalidConfig, AdapterMismatch) where `asked` describes another adapter than the one there is.
    """
    _check_same(model, LoraConfig.from_pretrained(str(folder)), asked)
    return PeftModel.from_pretrained(model, str(folder), is_trainable=True)


def adapter_without_weights(model: PreTrainedModel, folder: Path, asked: Lora | None) -> PeftModel:
    """As `continue_adapter`, for a model on the meta device: the adapter's shape alone."""
    config = LoraConfig.from_pretrained(str(folder))
    _check_same(model, config, asked)
    config.inference_mode, config.base_model_name_or_path = False, None
    return get_peft_model(model, config)


def _check_same(model: PreTrainedModel, config: LoraConfig, asked: Lora | None) -> None:
    """Every field of method.lora against the adapter's own; names may differ where they mean the same modules."""
    if asked is None:
        return
    there = Lora.model_construct(
        rank=config.r,
        alpha=float(config.lora_alpha),
        dropout=float(config.lora_dropout),
        target_modules=_listed(config.target_modules),
    )
    differing = [field for field in Lora.model_fields if getattr(asked, field) != getattr(there, field)]
    if "target_modules" in differing and _same_modules(model, config, asked):
        differing.remove("target_modules")
    if not differing:
        return
    described = "; ".join(
        f"{to_camel(field)} {_shown(getattr(asked, field))}, but the adapter has {_shown(getattr(there, field))}"
        for field in differing
    )
    message = f"method.lora asks for another adapter than the one to train further: {described}"
    remedy = "Leave method.lora out, or start from a merged model."
    raise RunError(FailureClass.INVALID_CONFIG, "AdapterMismatch", message, remedy)


def _same_modules(model: PreTrainedModel, config: LoraConfig, asked: Lora) -> bool:
    return _targeted(model, resolve_targets(model, asked.target_modules)) == _targeted(model, config.target_modules)


def _targeted(model: PreTrainedModel, targets: str | Iterable[str]) -> set[str]:
    """Paths of the linear modules that PEFT adapts: a text is all-linear or a pattern of whole paths."""
    linear = linear_modules(model)
    if targets == ALL_LINEAR:
        head = model.get_output_embeddings()
        return {path for path in linear if model.get_submodule(path) is not head}
    if isinstance(targets, str):
        return {path for path in linear if re.fullmatch(targets, path)}
    return {path for path in linear if any(_ends_with(path, name) for name in targets)}


def _listed(targets: str | Iterable[str]) -> list[str]:
    return [targets] if isinstance(targets, str) else sorted(targets)


def _shown(value: float | list[str]) -> str:
    return quoted(value, most=8) if isinstance(value, list) else f"{value:g}"


def resolve_targets(model: nn.Module, names: list[str]) -> str | list[str]:
    """What PEFT is told to adapt: a name matches a whole last part of a module's path, a regex the whole path."""
    if names == [ALL_LINEAR]:
        return ALL_LINEAR
    linear = linear_modules(model)
    if any(name.startswith(REGEX_PREFIX) for name in names):
        return _matching(linear, names)
    missing = [name for name in names if not any(_ends_with(path, name) for path in linear)]
    if missing:
        raise _not_found(missing, linear)
    return names


def shortest_names(targeted: set[str], paths: list[str]) -> list[str]:
    """The last parts of the targeted paths, if they name these modules and no other; else the whole paths; sorted."""
    last_parts = {path.rpartition(".")[2] for path in targeted}
    named = {path for path in paths if path.rpartition(".")[2] in last_parts}
    return sorted(last_parts if named == targeted else targeted)


def linear_modules(model: nn.Module) -> list[str]:
    """Paths of all linear modules."""
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _matching(linear: list[str], names: list[str]) -> list[str]:
    """Paths that the one regex matches. Only linear ones: PEFT would stumble over a container that matches too."""
    if len(names) > 1:
        message = f"method.lora.targetModules has {len(names)} entries, but a 'regex:' entry stands alone"
        raise _invalid(message, "Put the other names into the pattern.")
    try:
        pattern = re.compile(names[0].removeprefix(REGEX_PREFIX))
    except re.error as error:
        message = f"method.lora.targetModules: '{names[0]}' is not a regular expression: {error}"
        raise _invalid(message, "Correct the pattern; it must match whole module paths.") from error
    found = [path for path in linear if pattern.fullmatch(path)]
    if not found:
        raise _not_found(names, linear)
    return found


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _not_found(missing: list[str], linear: Iterable[str]) -> RunError:
    last_parts = list(dict.fromkeys(path.rpartition(".")[2] for path in linear))
    message = (
        f"method.lora.targetModules names {quoted(missing)}, which no linear module of the model matches; "
        f"there are {quoted(last_parts)}"
    )
    return RunError(
        FailureClass.INVALID_CONFIG, "TargetModulesNotFound", message, "Name modules of the model, or all-linear."
    )


def _invalid(message: str, remedy: str) -> RunError:
    return RunError(FailureClass.INVALID_CONFIG, "TargetModulesInvalid", message, remedy)
