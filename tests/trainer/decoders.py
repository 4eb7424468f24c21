"""Tiny random decoders of several families, and rows of random ids for them."""

import numpy as np
import torch
from finetune_trainer.prepared import TokenRows
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 50
WINDOW = 5
"""Sliding window of the Mistral: shorter than most rows here, so that it matters."""

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES = ("llama", "qwen3", "mistral", "gpt2")


def a_decoder(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random model in fp32, without dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family == "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(**COMMON))
        if family == "mistral":
            return MistralForCausalLM(MistralConfig(**COMMON, sliding_window=WINDOW))
        if family == "gpt2":
            sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
            off = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
            return GPT2LMHeadModel(GPT2Config(**sizes, **off, bos_token_id=1, eos_token_id=2, pad_token_id=0))
        return LlamaForCausalLM(LlamaConfig(**COMMON))


def some_rows(lengths: tuple[int, ...] = (9, 4, 12, 4, 7), prompt: int = 2, seed: int = 0) -> TokenRows:
    """Rows of random ids; all but the first `prompt` ids of each are supervised."""
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, sum(lengths)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    supervised = np.concatenate([np.arange(length) >= prompt for length in lengths])
    return TokenRows(ids, supervised, offsets)
