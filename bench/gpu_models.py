"""What `bench.gpu` trains: random models of given shapes made on the device, and rows of random ids."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from finetune_api.training import Lora
from finetune_trainer.adapter import attach_adapter
from finetune_trainer.compute import Compute
from finetune_trainer.loss import LossModel
from finetune_trainer.measure import Engine, make_engine
from finetune_trainer.model import Model
from finetune_trainer.prepared import TokenRows
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

RANK, ALPHA = 16, 32


@dataclass(frozen=True)
class Shape:
    """A Llama and its rows."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    longest: int
    """Tokens of the longest row; the shortest has an eighth of it."""
    rows_per_step: int
    tokens_per_batch: int
    """Most tokens of a micro-batch."""

    @property
    def words(self) -> str:
        """For the table."""
        return (
            f"{self.layers} layers of {self.hidden}, vocabulary {self.vocabulary:,}, rows of {self.longest // 8:,} to "
            f"{self.longest:,} tokens, {self.rows_per_step} a step, micro-batches of {self.tokens_per_batch:,} tokens"
        )

    def config(self) -> LlamaConfig:
        """transformers' config."""
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.longest,
            tie_word_embeddings=False,
        )


SHAPES = {
    "8B": Shape(4096, 14336, 32, 32, 8, 128256, longest=4096, rows_per_step=8, tokens_per_batch=8192),
    "small": Shape(2048, 8192, 16, 32, 8, 128256, longest=4096, rows_per_step=8, tokens_per_batch=8192),
}
"""Llama-3.1-8B, and Llama-3.2-1B but for its tied head. Source: config.json of both."""

TINY_SHAPES = {
    "8B": Shape(128, 256, 2, 4, 2, 500, longest=64, rows_per_step=4, tokens_per_batch=128),
    "small": Shape(64, 128, 2, 4, 2, 500, longest=64, rows_per_step=4, tokens_per_batch=128),
}


def some_rows(shape: Shape, count: int = 256, seed: int = 0) -> TokenRows:
    """Rows of random ids and lengths, half of each supervised."""
    random = np.random.default_rng(seed)
    lengths = random.integers(shape.longest // 8, shape.longest + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = random.integers(0, shape.vocabulary, int(offsets[-1])).astype(np.int32)
    supervised = np.concatenate([np.arange(length) >= length // 2 for length in lengths])
    return TokenRows(ids, supervised, offsets)


def engine_for(shape: Shape, method: str, compute: Compute, packed: bool, bare_head: bool) -> Engine:
    """A fresh model of the shape with what `method` (lora, qlora, full) trains on it, as the product makes it."""
    model: Model = base_model(shape, torch.float32 if method == "full" else compute.dtype, compute.device)
    if method == "qlora":
        quantise(model, compute)
    if method == "full":
        model.requires_grad_(True)
    else:
        model = attach_adapter(model, Lora(rank=RANK, alpha=ALPHA), seed=0)
    engine = make_engine(model, compute, packed, print)
    return engine if bare_head else replace(engine, loss=LossModel(engine.inner, False, compute.autocast))


def base_model(shape: Shape, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Random weights, made on the device in their final precision."""
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = LlamaForCausalLM._from_config(shape.config(), dtype=dtype)
    return model.train()


def quantise(model: PreTrainedModel, compute: Compute) -> None:
    """Every linear layer but the head as bitsandbytes' NF4, one after another, as loading a model does it."""
    import bitsandbytes

    head = model.get_output_embeddings()
    for path, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and module is not head:
            layer = bitsandbytes.nn.Linear4bit(
                module.in_features, module.out_features, False, compute.dtype, quant_type="nf4"
            )
            layer.weight = bitsandbytes.nn.Params4bit(module.weight.data.cpu(), requires_grad=False, quant_type="nf4")
            model.set_submodule(path, layer.to(compute.device))
    model.is_loaded_in_4bit = True


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each decoder layer on its own: they share one compiled form, and row attention stays as it is."""
    for layer in model.get_decoder().layers:
        layer.compile(dynamic=True)


def trl_training(shape: Shape, device: torch.device, folder: Path) -> Callable[[int], int]:
    """TRL's SFTTrainer with the same adapter on the same rows, padded, in bf16 on a GPU."""
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    rows, gpu = some_rows(shape), device.type == "cuda"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"0": 0})), eos_token="0", pad_token="0")
    batch = max(1, shape.tokens_per_batch // shape.longest)
    model = base_model(shape, torch.bfloat16 if gpu else torch.float32, device)
    columns = [rows.row(number) for number in range(len(rows))]
    dataset = Dataset.from_list(
        [{"input_ids": ids.tolist(), "completion_mask": flags.astype(int).tolist()} for ids, flags in columns]
    )

    def train(steps: int) -> int:
        arguments = SFTConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=shape.rows_per_step // batch,
            train_sampling_strategy="sequential",
            completion_only_loss=True,
            max_length=None,
            gradient_checkpointing=False,
            bf16=gpu,
            use_cpu=not gpu,
            dataloader_pin_memory=gpu,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=dataset,
            peft_config=lora,
            args=arguments,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return int(rows.offsets[steps * shape.rows_per_step])

    return train
