"""A decoder's code on narrow random weights: what it does with its input can be tried out in milliseconds.

Kinds and number of layers, heads in groups, soft caps, experts and the like stay; widths shrink, and a sliding window
becomes shorter than the rows that are tried, so that it matters.
"""

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

HEADS, HEAD_SIZE, VOCABULARY, EXPERTS = 4, 16, 64, 4
"""The head size is one that the GPU's attention kernel takes, so that what is tried is what trains."""

HIDDEN = HEADS * HEAD_SIZE

WINDOW = 5
"""Tokens that a sliding window or chunk of the copy holds."""

MOST_LAYERS = 12
"""Patterns of layers are shorter than this."""

SIZES: dict[str, int] = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "head_dim": HEAD_SIZE,
    "vocab_size": VOCABULARY,
    "intermediate_size": HIDDEN,
    "ffn_dim": HIDDEN,
    "n_inner": HIDDEN,
    "ffn_hidden_size": HIDDEN,
    "word_embed_proj_dim": HIDDEN,
    "rotary_dim": HEAD_SIZE // 2,
    "q_lora_rank": HIDDEN,
    "kv_lora_rank": HIDDEN,
    "qk_nope_head_dim": HEAD_SIZE,
    "qk_rope_head_dim": HEAD_SIZE,
    "qk_head_dim": 2 * HEAD_SIZE,
    "v_head_dim": HEAD_SIZE,
    "query_pre_attn_scalar": HEAD_SIZE,
    "moe_intermediate_size": HIDDEN,
    "shared_expert_intermediate_size": HIDDEN,
    "shared_intermediate_size": HIDDEN,
    "num_local_experts": EXPERTS,
    "num_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "max_position_embeddings": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Fields of configs, and what they become where they are set. Unknown ones stay as they are."""

LIBRARIES = frozenset({"torch", "peft", "bitsandbytes"})

GROUPS = ("num_key_value_heads", "num_kv_heads")
"""What the number of key and value heads is called."""

MOST_PARAMETERS = 5_000_000
"""A copy that is larger has widths that this module does not know: it would take seconds."""


def tiny_copy(decoder: PreTrainedModel, seed: int = 0) -> PreTrainedModel | None:
    """A narrow decoder of the same class, in fp32 on the CPU; None where its config cannot be shrunk that way."""
    make = type(decoder)
    try:
        config = tiny_config(decoder.config)
        with torch.device("meta"):
            sketch: PreTrainedModel = make(copy.deepcopy(config))
        if sum(parameter.numel() for parameter in sketch.parameters()) > MOST_PARAMETERS:
            return None
        if not _kinds(decoder) <= _kinds(sketch):
            return None  # It lacks a part that the model has.
        with torch.random.fork_rng(), torch.device("cpu"):
            torch.manual_seed(seed)
            copied: PreTrainedModel = make(config)
            _enliven(copied)
    except Exception:  # noqa: BLE001 (a config with rules of its own; nothing is known of the model then)
        return None
    return copied.eval()


def tiny_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config with small sizes, otherwise as it is."""
    small = copy.deepcopy(config)
    heads = config.num_attention_heads
    for name, size in SIZES.items():
        _set(small, name, size)
    for name in GROUPS:
        _set(small, name, _groups(heads, getattr(config, name, None)))
    layers = config.num_hidden_layers
    if layers > MOST_LAYERS and _first_layers_say_all(config):
        _set(small, "num_hidden_layers", MOST_LAYERS)
        for name, value in config.to_dict().items():
            if isinstance(value, list) and len(value) == layers:
                _set(small, name, value[:MOST_LAYERS])
    if isinstance(getattr(config, "rope_parameters", None), dict):
        small.rope_parameters = _plain_rope(config.rope_parameters)
    return small


def _set(config: PreTrainedConfig, name: str, value: Any) -> None:
    """Only what the config has, and has set, and lets itself be told."""
    if getattr(config, name, None) is None:
        return
    try:
        setattr(config, name, value)
    except AttributeError:
        return  # Computed from the other fields.


def _groups(heads: int, given: int | None) -> int:
    """As many key and value heads as there were for each query head: one, a few, or one each."""
    if given is None or given == heads:
        return HEADS
    return 1 if given == 1 else HEADS // 2


def _first_layers_say_all(config: PreTrainedConfig) -> bool:
    kinds = getattr(config, "layer_types", None) or []
    return set(kinds[:MOST_LAYERS]) == set(kinds)


def _plain_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Not stretched to long texts, which takes a number for each width and has nothing to do with who sees whom."""
    if any(isinstance(value, dict) for value in rope.values()):  # One for each kind of layer.
        return {kind: _plain_rope(value) for kind, value in rope.items() if isinstance(value, dict)}
    single = {name: value for name, value in rope.items() if not isinstance(value, list)}
    return single | {"rope_type": "default"}


@torch.no_grad()
def _enliven(model: PreTrainedModel) -> None:
    """Weights of a size that lets attention tell tokens apart: a fresh model's are so small that it hardly does."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)


def _kinds(model: PreTrainedModel) -> set[type]:
    """The classes of its parts that come with the model; those of the libraries may stand in for one another."""
    return {type(part) for part in model.modules() if type(part).__module__.partition(".")[0] not in LIBRARIES}
