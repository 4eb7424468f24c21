"""The tokenizer of a model folder, as transformers loads it, so that ids are those of all who use it."""

import json
from datetime import date
from pathlib import Path
from typing import Any

from finetune_api.names import FailureClass
from tokenizers import Tokenizer

from finetune_trainer.chat import Message
from finetune_trainer.chat_template import ChatWriter, Render
from finetune_trainer.errors import RunError
from finetune_trainer.model_config import check_own_code


def load_tokenizer(folder: Path, trusted: bool = False) -> tuple[Tokenizer, int]:
    """The fast tokenizer behind transformers' own, and its end token's id. Imports transformers, which imports torch.

    The end token is the tokenizer's, else the first of the model config's. `trusted`: its own code may run.
    Raises RunError (InvalidConfig).
    """
    tokenizer = _loaded(folder, trusted)
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


def load_chat_writer(folder: Path, special_texts: list[str], today: date, trusted: bool = False) -> ChatWriter:
    """Writes chats by the tokenizer's own chat template; `special_texts` are those of its special tokens."""
    return ChatWriter(load_chat_template(folder, today, trusted), special_texts)


def load_chat_template(folder: Path, today: date, trusted: bool = False) -> Render:
    """The tokenizer's own chat template, in transformers' sandbox; every date it asks for is `today`.

    Raises RunError (InvalidConfig): NoChatTemplate where it has none, ChatTemplateInvalid where it is none.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    tokenizer = _loaded(folder, trusted)
    if not tokenizer.chat_template:
        raise RunError(
            FailureClass.INVALID_CONFIG,
            "NoChatTemplate",
            "the data holds chats (column messages), but the model's tokenizer has no chat template",
            "Choose a model with a chat template, or set promptTemplate and completionTemplate over other columns.",
        )

    try:
        _compile_jinja_template(tokenizer.get_chat_template())
    except Exception as error:
        message = f"the chat template of the model's tokenizer cannot be used: {error}"
        remedy = "Correct it in the model's folder, or choose another model."
        raise RunError(FailureClass.INVALID_CONFIG, "ChatTemplateInvalid", message, remedy) from error

    def render(messages: list[Message], tools: list[dict[str, Any]] | None, asks: bool) -> str:
        compiled = _compile_jinja_template(tokenizer.get_chat_template(tools=tools))
        # The template's own function would tell another date to each attempt. Compiled templates are kept by
        # transformers, and an argument would not do: what is no JSON does not reach a template.
        compiled.environment.globals["strftime_now"] = today.strftime
        return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=asks))

    return render


def _loaded(folder: Path, trusted: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted, local_files_only=True)
    except Exception as error:
        check_own_code(_tokenizer_config(folder), "the model's tokenizer", trusted)
        raise _unusable(f"the model's tokenizer cannot be loaded: {error}") from error


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    """What it says; nothing where it is not readable, which transformers tells."""
    try:
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def first_end_id(folder: Path) -> int | None:
    """The first `eos_token_id` of config.json, where it is an id."""
    path = folder / "config.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    first = found[0] if isinstance(found, list) and found else found
    return first if isinstance(first, int) and first >= 0 else None


def _unusable(message: str) -> RunError:
    return RunError(
        FailureClass.INVALID_CONFIG, "TokenizerUnsupported", message, "Choose a model with a tokenizer.json."
    )
