"""A Llama of a few thousand random weights with a tokenizer of single characters, made on the spot.

Nothing is downloaded. The folder looks like any model of the hub: config, weights, tokenizer, generation config.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]

EOS = "<eos>"
PAD = "<pad>"
BOS = "<bos>"

POSITION_LIMIT = 256


def a_tokenizer(begin_token: bool = False, pad_is_end: bool = False) -> Tokenizer:
    """One id per printable ASCII character; anything else is `<unk>`."""
    specials = ["<unk>", EOS, *([] if pad_is_end else [PAD]), *([BOS] if begin_token else [])]
    vocabulary = {token: number for number, token in enumerate([*specials, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    if begin_token:
        tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
    return tokenizer


def a_tokenizer_folder(folder: Path, begin_token: bool = False, pad_is_end: bool = False) -> Path:
    """The tokenizer alone, as transformers' AutoTokenizer reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    a_tokenizer(begin_token, pad_is_end).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "eos_token": EOS,
        "pad_token": EOS if pad_is_end else PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": POSITION_LIMIT,
    }
    if begin_token:
        config["bos_token"] = BOS
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def a_model_folder(
    folder: Path,
    begin_token: bool = False,
    pad_is_end: bool = False,
    weights: bool = True,
    seed: int = 0,
    hidden: int = 32,
) -> Path:
    """A whole model: 2 layers, random weights from `seed`. Without `weights` no torch is imported."""
    a_tokenizer_folder(folder, begin_token, pad_is_end)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(EOS)
    settings = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITION_LIMIT,
        "eos_token_id": end,
        "pad_token_id": end if pad_is_end else tokenizer.token_to_id(PAD),
        "bos_token_id": tokenizer.token_to_id(BOS),
    }
    if weights:
        _save_weights(folder, settings, seed)
    else:
        whole = settings | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(whole))
    return folder


def _save_weights(folder: Path, settings: dict[str, int | None], seed: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
