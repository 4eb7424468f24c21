"""Tiny random decoders of several families, and rows of random ids for them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import transformers
from finetune_trainer.attention import rows_attended
from finetune_trainer.batch import Packing
from finetune_trainer.prepared import TokenRows
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 50
WINDOW = 5
"""Sliding window of the families that have one: shorter than most rows here, so that it matters."""

TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

COMMON = TOKENS | SIZES | {"head_dim": 8}

OLDER = TOKENS | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}

NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}

GEMMA2 = {"sliding_window": WINDOW, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.0}
"""A soft cap so low that scores of random weights feel it."""

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

JAMBA = {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**COMMON),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON),
    "mistral": lambda: transformers.MistralConfig(**COMMON, sliding_window=WINDOW),
    "gemma2": lambda: transformers.Gemma2Config(**COMMON, **GEMMA2),
    "phi": lambda: transformers.PhiConfig(**TOKENS, **SIZES),
    "gpt2": lambda: transformers.GPT2Config(**OLDER, **NO_DROPOUT, n_positions=64),
    "opt": lambda: transformers.OPTConfig(**OLDER, ffn_dim=48, max_position_embeddings=64, dropout=0.0),
    "falcon": lambda: transformers.FalconConfig(**OLDER),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(**COMMON, **EXPERTS),
    "bloom": lambda: transformers.BloomConfig(**OLDER),
    "falcon-alibi": lambda: transformers.FalconConfig(**OLDER, alibi=True),
    "mamba": lambda: transformers.MambaConfig(**TOKENS, hidden_size=32, num_hidden_layers=2, state_size=4),
    "jamba": lambda: transformers.JambaConfig(**TOKENS, **SIZES, **JAMBA),
}

PACKED = ("llama", "qwen3", "mistral", "gemma2", "phi", "gpt2", "opt", "falcon", "qwen3-moe")
"""Families whose rows can be packed."""

UNPACKED = ("bloom", "falcon-alibi", "mamba", "jamba")
"""Families whose rows would see each other: positions by distance in the batch, or a state carried along it."""

FAMILIES = PACKED + UNPACKED

COMMONEST = ("llama", "qwen3", "mistral", "gpt2")
"""Enough where the family hardly matters."""


def a_decoder(family: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model in fp32, without dropout; `changes` are made to its config."""
    config = CONFIGS[family]()
    config.update(changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        return model


def packed_rows(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Inside, packed batches may go through the model. Falcon alone hands no layout on to its layers."""
    return rows_attended(model, Packing.BLOCKS if model.config.model_type == "falcon" else Packing.ROWS)


def some_rows(lengths: tuple[int, ...] = (9, 4, 12, 4, 7), prompt: int = 2, seed: int = 0) -> TokenRows:
    """Rows of random ids; all but the first `prompt` ids of each are supervised."""
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, sum(lengths)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    supervised = np.concatenate([np.arange(length) >= prompt for length in lengths])
    return TokenRows(ids, supervised, offsets)
