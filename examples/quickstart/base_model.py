"""The quickstart's base model: a Llama of 0.87 million parameters, pretrained here on sentences that mention dates.

    python -m examples.quickstart.base_model FOLDER

It knows how dates look and has never seen one turned into another form. The steps are counted, not timed, so one
machine always makes the same model: about two CPU minutes, one minute on two cores.
"""

import json
import sys
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from examples.quickstart import dates

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"
SPECIALS = (PAD, END, UNKNOWN)
CHARACTERS = (*(chr(code) for code in range(32, 127)), "\n")
POSITION_LIMIT = 256
"""Longest text in tokens; one token is one character."""

STEPS, BATCH_ROWS, ROW_TOKENS = 300, 16, 128
MATRIX_RATE, OTHER_RATE = 4e-3, 1e-2
WARMUP_STEPS = 20
SEED = 0
THREADS = 2


def new_tokenizer() -> Tokenizer:
    """One id per printable ASCII character."""
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """4 layers of hidden size 128 with random weights, a function of SEED."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=POSITION_LIMIT,
        tie_word_embeddings=False,  # A tied head cannot tell digits apart with confidence, and LoRA leaves it frozen.
        pad_token_id=tokenizer.token_to_id(PAD),
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
    )
    return LlamaForCausalLM(config)


def batches(tokenizer: Tokenizer) -> Iterator[Tensor]:
    """Endless batches of ids, (BATCH_ROWS, ROW_TOKENS): sentences one behind the other, an end token after each."""
    ids = chain.from_iterable(tokenizer.encode(text + END).ids for text in dates.sentences(SEED))
    while True:
        yield torch.tensor(list(islice(ids, BATCH_ROWS * ROW_TOKENS))).view(BATCH_ROWS, ROW_TOKENS)


def pretrain(model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """STEPS steps; prints the progress.

    The layers' matrices are trained with Muon (Jordan et al. 2024), which needs far fewer steps than AdamW here.
    """
    matrices = [tensor for name, tensor in model.named_parameters() if tensor.ndim == 2 and "layers" in name]
    others = [tensor for name, tensor in model.named_parameters() if tensor.ndim != 2 or "layers" not in name]
    optimizers = [
        torch.optim.Muon(matrices, MATRIX_RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    rates = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor) for optimizer in optimizers]
    started = time.monotonic()
    for step, ids in enumerate(islice(batches(tokenizer), STEPS), start=1):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.step()
            rate.step()
        model.zero_grad()
        if step % 20 == 0:
            left = (time.monotonic() - started) / step * (STEPS - step)
            print(f"step {step}/{STEPS}, loss {loss.item():.3f}, {left:.0f} s left", flush=True)


def rate_factor(step: int) -> float:
    """The learning rate's factor: it rises over WARMUP_STEPS, then falls to zero."""
    return min((step + 1) / WARMUP_STEPS, (STEPS - step) / (STEPS - WARMUP_STEPS))


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """The model as any of the hub: config, generation config, safetensors and tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": POSITION_LIMIT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def main(folder: Path) -> None:
    """Make the model and save it to `folder`, which is there only when it is whole."""
    torch.set_num_threads(THREADS)
    tokenizer = new_tokenizer()
    model = new_model(tokenizer)
    pretrain(model, tokenizer)
    unfinished = folder.with_name(folder.name + ".part")
    save(model, tokenizer, unfinished)
    unfinished.rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
