"""The tokenizer of a model folder, as transformers loads it, so that ids are those of all who use it."""

import json
from pathlib import Path

from finetune_api.names import FailureClass
from tokenizers import Tokenizer

from finetune_trainer.errors import RunError


def load_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """The fast tokenizer behind transformers' own, and its end token's id. Imports transformers, which imports torch.

    The end token is the tokenizer's, else the first of the model config's. Raises RunError (InvalidConfig).
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise _unusable(f"the model's tokenizer cannot be loaded: {error}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise _unusable(f"the model's tokenizer ({type(tokenizer).__name__}) has no fast form")
    end = tokenizer.eos_token_id
    if end is None:
        end = first_end_id(folder)
    if end is None:
        raise _unusable("neither the model's tokenizer nor its config names an end token (eos_token_id)")
    # A copy, since transformers changes the original's settings as it is called.
    return Tokenizer.from_str(backend.to_str()), int(end)


def first_end_id(folder: Path) -> int | None:
    """The first `eos_token_id` of config.json, where there is one."""
    path = folder / "config.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    first = found[0] if isinstance(found, list) and found else found
    return first if isinstance(first, int) else None


def _unusable(message: str) -> RunError:
    return RunError(
        FailureClass.INVALID_CONFIG, "TokenizerUnsupported", message, "Choose a model with a tokenizer.json."
    )
