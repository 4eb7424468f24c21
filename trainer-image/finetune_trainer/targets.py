"""Which parts of a model LoRA adapts: names, a pattern or `all-linear` against the modules that there are.

Pure but for PEFT's own rules about what it cannot adapt, which are asked, not copied.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from finetune_api.names import FailureClass
from finetune_api.training import Lora
from peft import LoraConfig
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_trainer.errors import RunError, quoted

ALL_LINEAR = "all-linear"
REGEX_PREFIX = "regex:"

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""What the number of experts is called, by model family."""

READ_PAST_THE_MODULE = frozenset({"dt_proj"})
"""Linear layers that a model never calls, since it multiplies their weight itself: Mamba's step sizes."""

ROUTER_NAMES = frozenset({"gate", "router", "shared_expert_gate"})
"""Parts of the paths of linear layers that choose or weigh experts."""


@dataclass(frozen=True)
class Targets:
    """What PEFT is told to adapt."""

    modules: list[str]
    """Last parts of paths, or whole paths, of linear modules."""
    parameters: list[str] = field(default_factory=list)
    """Last two parts of the paths of fused expert weights."""
    warnings: list[str] = field(default_factory=list)
    """What was asked for and is left as it is, and why."""


def resolve_targets(model: PreTrainedModel, lora: Lora) -> Targets:
    """The modules and expert weights that `lora.target_modules` means in this model.

    A name matches a whole last part of a path, a regex the whole path. Raises RunError (InvalidConfig):
    TargetModulesNotFound, TargetModulesInvalid.
    """
    linear, experts = linear_modules(model), expert_weights(model)
    candidates = [*linear, *experts]
    if lora.target_modules == [ALL_LINEAR]:
        chosen = _all_linear(model, candidates)
    elif any(name.startswith(REGEX_PREFIX) for name in lora.target_modules):
        chosen = _matching(candidates, lora.target_modules)
    else:
        chosen = _named(candidates, lora.target_modules)
    modules = [path for path in chosen if path in linear]
    _check_adaptable(model, linear, modules)
    return _targets(model, lora, modules, [path for path in chosen if path in experts])


def linear_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear modules that see text, by path: those of the decoder, and the output head."""
    seen = {*map(id, model.get_decoder().modules()), id(model.get_output_embeddings())}
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) in seen
    }


def expert_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights that hold a matrix for each expert, (experts, ·, ·), by path."""
    experts = expert_count(model)
    return {
        path: parameter
        for path, parameter in model.named_parameters()
        if parameter.ndim == 3 and parameter.shape[0] == experts
    }


def expert_count(model: PreTrainedModel) -> int | None:
    """Experts of each layer; None for a dense model."""
    config = model.config.get_text_config()
    found = (getattr(config, name, None) for name in EXPERT_COUNTS)
    return next((count for count in found if isinstance(count, int)), None)


def shortest_names(targeted: set[str], paths: Iterable[str]) -> list[str]:
    """The last parts of the targeted paths, if they name these modules and no other; else the whole paths; sorted."""
    last_parts = {_last(path) for path in targeted}
    named = {path for path in paths if _last(path) in last_parts}
    return sorted(last_parts if named == targeted else targeted)


def ends_with(path: str, name: str) -> bool:
    """Whether `name` is a whole last part, or several, of a path."""
    return path == name or path.endswith(f".{name}")


def nearest(names: Iterable[str], there: Iterable[str]) -> list[str]:
    """For a message: what was probably meant."""
    options = list(there)
    return list(dict.fromkeys(near for name in names for near in difflib.get_close_matches(name, options, n=3)))


def _all_linear(model: PreTrainedModel, candidates: list[str]) -> list[str]:
    """All but the head, routers, and what PEFT calls incompatible."""
    head, experts = model.get_output_embeddings(), expert_count(model)
    modules = dict(model.named_modules())
    return [
        path
        for path in candidates
        if path not in modules
        or not (modules[path] is head or _is_router(path, modules[path], experts) or _is_incompatible(model, path))
    ]


def _is_router(path: str, module: nn.Module, experts: int | None) -> bool:
    outputs = getattr(module, "out_features", None)
    return experts is not None and outputs in (experts, 1) and not ROUTER_NAMES.isdisjoint(path.split("."))


def _is_incompatible(model: PreTrainedModel, path: str) -> bool:
    """Such as Mamba's out_proj, whose weight its kernels read past the module."""
    if _last(path) in READ_PAST_THE_MODULE:
        return True
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, _last(path))
    except ValueError:
        return True
    return False


def _matching(candidates: list[str], names: list[str]) -> list[str]:
    """Paths that the one regex matches. Only these: PEFT would stumble over a container that matches too."""
    if len(names) > 1:
        message = f"method.lora.targetModules has {len(names)} entries, but a 'regex:' entry stands alone"
        raise _invalid(message, "Put the other names into the pattern.")
    try:
        pattern = re.compile(names[0].removeprefix(REGEX_PREFIX))
    except re.error as error:
        message = f"method.lora.targetModules: '{names[0]}' is not a regular expression: {error}"
        raise _invalid(message, "Correct the pattern; it must match whole module paths.") from error
    found = [path for path in candidates if pattern.fullmatch(path)]
    if not found:
        raise _not_found(names, candidates)
    return found


def _named(candidates: list[str], names: list[str]) -> list[str]:
    missing = [name for name in names if not any(ends_with(path, name) for path in candidates)]
    if missing:
        raise _not_found(missing, candidates)
    return [path for path in candidates if any(ends_with(path, name) for name in names)]


def _check_adaptable(model: PreTrainedModel, linear: dict[str, nn.Module], chosen: list[str]) -> None:
    """What PEFT cannot adapt was named by the user: all-linear leaves it out by itself."""
    incompatible = [path for path in chosen if _is_incompatible(model, path)]
    if incompatible:
        message = (
            f"method.lora.targetModules names {quoted({_last(path) for path in incompatible})}, which LoRA cannot "
            f"adapt in a {model.config.model_type} model, which reads their weights past the modules"
        )
        raise _invalid(message, "Leave these names out, or use all-linear.")
    head = model.get_output_embeddings()
    if has_tied_head(model) and any(linear[path] is head for path in chosen):
        message = "method.lora.targetModules names the output head, whose weight this model shares with its embedding"
        raise _invalid(message, "Leave the head out, or train both as one: name the head in method.lora.modulesToSave.")


def has_tied_head(model: PreTrainedModel) -> bool:
    """Whether the output head's weight is the embedding's."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and getattr(head, "weight", None) is embedding.weight


def _targets(model: PreTrainedModel, lora: Lora, modules: list[str], experts: list[str]) -> Targets:
    """Leave out, with a warning, what PEFT has no way to adapt."""
    remapped = [path for path in modules if experts_are_meant(model, path)]
    if remapped:
        modules = [path for path in modules if path not in remapped]
    warnings = list(_remapped_warning(remapped))
    if experts and (lora.dropout or lora.dora):
        warnings.append(_experts_warning(model, modules, experts, "dropout" if lora.dropout else "dora"))
        experts = []
    if not modules and not experts:
        raise _invalid(" ".join(warnings) or "nothing is left to adapt", "Name other modules.")
    names = shortest_names(set(modules), [path for path, _ in model.named_modules()])
    return Targets(names, sorted({".".join(path.split(".")[-2:]) for path in experts}), warnings)


def experts_are_meant(model: PreTrainedModel, path: str) -> bool:
    """Whether PEFT takes the module's name for that of an expert's matrix, as saved before experts were fused.

    It then adapts the fused weights in its place, here and wherever the adapter is loaded.
    """
    trial = LoraConfig(target_modules=[path])
    try:
        convert_peft_config_for_transformers(trial, model, None)
    except ValueError:  # One half of a fused pair.
        return True
    return path not in trial.target_modules


def _remapped_warning(paths: list[str]) -> Iterator[str]:
    if paths:
        names = quoted({_last(path) for path in paths})
        yield (
            f"method.lora: {len(paths)} linear modules called {names} outside of the fused experts are not adapted, "
            "since PEFT takes these names for the experts"
        )


def _experts_warning(model: PreTrainedModel, modules: list[str], experts: list[str], field: str) -> str:
    weights = expert_weights(model)
    left_out = sum(weights[path].numel() for path in experts)
    others = sum(p.numel() for path in modules for p in model.get_submodule(path).parameters())
    share = 100 * left_out / (left_out + others)
    return (
        f"method.lora.{field}: the fused expert weights, {share:.0f} % of what targetModules names, are not adapted, "
        f"since PEFT cannot with {field}"
    )


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _not_found(missing: list[str], candidates: Iterable[str]) -> RunError:
    there = list(dict.fromkeys(_last(path) for path in candidates))
    near = nearest([name.removeprefix(REGEX_PREFIX) for name in missing], there)
    message = (
        f"method.lora.targetModules names {quoted(missing)}, which no linear module of the model matches"
        f"{f'; nearest is {quoted(near)}' if near else ''}; there are {quoted(there)}"
    )
    return RunError(
        FailureClass.INVALID_CONFIG, "TargetModulesNotFound", message, "Name modules of the model, or all-linear."
    )


def _invalid(message: str, remedy: str) -> RunError:
    return RunError(FailureClass.INVALID_CONFIG, "TargetModulesInvalid", message, remedy)
