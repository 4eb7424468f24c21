"""What a model's config.json tells before any weight is loaded: whether it generates text, and its position limit."""

import json
from pathlib import Path
from typing import Any

from finetune_api.names import FailureClass

from finetune_trainer.errors import RunError

DECODER_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How the classes of decoders are called; the last also of models that read images beside text."""

POSITION_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length")
"""What the longest sequence is called, by model family."""

NO_POSITION_LIMIT = frozenset({"bloom", "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"})
"""Model types with ALiBi positions or a recurrent state: any length goes."""


def read_config(folder: Path, uri: str) -> dict[str, Any]:
    """config.json as a dict. Raises RunError (InvalidConfig) where it is not one."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unsupported("ModelInvalid", f"config.json of {uri} is not readable: {error}") from error
    if not isinstance(found, dict):
        raise _unsupported("ModelInvalid", f"config.json of {uri} is not an object")
    return found


def check_decoder(config: dict[str, Any], uri: str, trusted: bool = False) -> None:
    """Raise RunError (ModelUnsupported) with the architecture's name where it is no decoder that generates text.

    ModelQuantized where its weights are no plain ones; RemoteCodeForbidden where it comes with code of its own that is
    not `trusted`, or lies somewhere else.
    """
    names = [str(name) for name in _flat(config.get("architectures"))]
    if trusted or "model_type" not in config:  # A type that transformers knows needs no code of its own.
        check_own_code(config, uri, trusted)
    name = names[0] if names else str(config.get("model_type", "unknown"))
    is_decoder = not names or name.endswith(DECODER_ENDINGS)
    if config.get("is_encoder_decoder") or not is_decoder:
        raise _unsupported("ModelUnsupported", f"{uri} is a {name}, not a decoder that generates text")
    _check_whole(config, uri)


def _check_whole(config: dict[str, Any], uri: str) -> None:
    """Raise RunError (ModelQuantized) where the weights are stored in fewer bits already."""
    found = config.get("quantization_config")
    if found:
        kind = found.get("quant_method", "unknown") if isinstance(found, dict) else "unknown"
        message = f"the weights of {uri} are quantised already (quantization_config of config.json: {kind})"
        remedy = "Choose the unquantised model, and set method.quantization to int8 or nf4 to save memory."
        raise RunError(FailureClass.INVALID_CONFIG, "ModelQuantized", message, remedy)


def check_own_code(config: dict[str, Any], uri: str, trusted: bool) -> None:
    """Raise RunError (RemoteCodeForbidden) where a config names code of its own that may not run, or not from there."""
    named = [str(name) for name in _flat(config.get("auto_map", {}))]
    elsewhere = [name for name in named if "--" in name]
    if named and not trusted:
        message = f"{uri} needs code of its own ({named[0]}), and model.trustRemoteCode is false"
        remedy = (
            "Choose a model that transformers knows, or set model.trustRemoteCode where the operator allows it "
            "(settings.allowRemoteCode of its chart)."
        )
    elif elsewhere:
        message = f"{uri} needs code of another repository ({elsewhere[0]}), which is not fetched: no revision pins it"
        remedy = "Upload the model together with its code."
    else:
        return
    raise RunError(FailureClass.INVALID_CONFIG, "RemoteCodeForbidden", message, remedy)


def _flat(value: Any) -> list[Any]:
    """The names in a text, a list or an auto_map: a tokenizer's are lists, with null where there is none."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [name for each in inner for name in _flat(each)]
    return [] if value is None else [value]


def position_limit(config: dict[str, Any]) -> int | None:
    """Longest sequence in tokens; None where the model has no limit or names none."""
    text = config.get("text_config")
    fields = text if isinstance(text, dict) else config
    attention = fields.get("attn_config")
    if fields.get("model_type") in NO_POSITION_LIMIT or fields.get("alibi"):
        return None
    if isinstance(attention, dict) and attention.get("alibi"):
        return None
    found = (fields.get(name) for name in POSITION_FIELDS)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def _unsupported(reason: str, message: str) -> RunError:
    return RunError(FailureClass.INVALID_CONFIG, reason, message, "Choose a causal language model in model.uri.")
