"""The layers of a decoder: what is sharded, and what is compiled, one after another."""

from torch.nn import Module
from transformers import PreTrainedModel


def layers_of(model: PreTrainedModel) -> list[Module]:
    """The modules that transformers keeps in one piece."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]
