"""Modules that are trained whole beside the adapter and stored with it: `method.lora.modulesToSave`.

A name matches a whole last part of the path of an innermost module that holds weights: the embedding, the output head,
norms. Where the head's weight is the embedding's, both are trained as the one tensor that they are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from finetune_api.names import FailureClass
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_trainer.errors import RunError, quoted
from finetune_trainer.targets import ends_with, has_tied_head, nearest


@dataclass(frozen=True)
class SavedModules:
    """What PEFT is told to train whole."""

    names: list[str] = field(default_factory=list)
    """Ends of paths, as PEFT compares them: in the middle of a part, too."""
    tied: bool = False
    """The embedding is among them, and the head goes with it."""


def resolve_saved(model: PreTrainedModel, names: list[str]) -> SavedModules:
    """The modules of this model that `names` means.

    Raises RunError (InvalidConfig): ModulesToSaveNotFound, TiedWeights where PEFT cannot keep the tie.
    """
    chosen = _named(model, names)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    shared = [path for path in chosen if model.get_submodule(path) in (embedding, head)]
    if not shared or not has_tied_head(model):
        return SavedModules(_peft_names(model, chosen))
    whole = next(path for path, module in model.named_modules() if module is embedding)
    if whole.rpartition(".")[2] not in EMBEDDING_LAYER_NAMES:
        raise _tied(shared, whole)
    others = [path for path in chosen if path not in shared]
    return SavedModules([*_peft_names(model, others), whole], tied=True)


def check_not_quantised(model: PreTrainedModel, names: list[str]) -> None:
    """A quantised base keeps no weights of its linear layers that could be trained, but for the head's."""
    head = model.get_output_embeddings()
    modules = {path: model.get_submodule(path) for path in _named(model, names)}
    linear = {path for path, module in modules.items() if isinstance(module, nn.Linear | Conv1D) and module is not head}
    if linear:
        message = f"method.lora.modulesToSave names {quoted(linear, most=4)}, frozen by method.quantization"
        remedy = "Name embedding, head or norms, or set method.quantization to none."
        raise RunError(FailureClass.INVALID_CONFIG, "ModulesToSaveInvalid", message, remedy)


@torch.no_grad()
def train_in_fp32(model: PeftModel) -> None:
    """The copies that are trained get full precision, whatever the base is stored in; a shared tensor stays one."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for parameter in module.modules_to_save.parameters():
                parameter.data = parameter.data.float()


def _named(model: PreTrainedModel, names: list[str]) -> list[str]:
    there = _innermost(model)
    missing = [name for name in names if not any(ends_with(path, name) for path in there)]
    if missing:
        raise _not_found(missing, there)
    return [path for path in there if any(ends_with(path, name) for name in names)]


def _innermost(model: PreTrainedModel) -> list[str]:
    """Paths of modules of the decoder, and of the head, that hold weights and no other module."""
    seen = {*map(id, model.get_decoder().modules()), id(model.get_output_embeddings())}
    return [
        path
        for path, module in model.named_modules()
        if id(module) in seen and next(module.children(), None) is None and next(module.parameters(), None) is not None
    ]


def _peft_names(model: PreTrainedModel, paths: list[str]) -> list[str]:
    """Last parts where PEFT's comparison of ends finds these modules and no other, else whole paths."""
    last_parts = sorted({path.rpartition(".")[2] for path in paths})
    found = {path for path, _ in model.named_modules() if path.endswith(tuple(last_parts))}
    return last_parts if found == set(paths) else paths


def _not_found(missing: list[str], there: Iterable[str]) -> RunError:
    last_parts = list(dict.fromkeys(path.rpartition(".")[2] for path in there))
    near = nearest(missing, last_parts)
    message = (
        f"method.lora.modulesToSave names {quoted(missing)}, which no innermost module of the model matches"
        f"{f'; nearest is {quoted(near)}' if near else ''}; there are {quoted(last_parts)}"
    )
    remedy = "Name modules that hold weights themselves, such as the embedding or the output head."
    return RunError(FailureClass.INVALID_CONFIG, "ModulesToSaveNotFound", message, remedy)


def _tied(shared: list[str], embedding: str) -> RunError:
    message = (
        f"method.lora.modulesToSave names {quoted(shared)}, but embedding and output head are one weight here, "
        f"and PEFT keeps it one only where the embedding is called {' or '.join(EMBEDDING_LAYER_NAMES)}, "
        f"not {embedding}"
    )
    return RunError(FailureClass.INVALID_CONFIG, "TiedWeights", message, "Leave these names out, or train it whole.")
