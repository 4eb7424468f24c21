"""What `bench.gpu` trains: random models of given shapes made on the device, and rows of random ids."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from finetune_api.training import Lora
from finetune_trainer.adapter import attach_adapter
from finetune_trainer.batch import Packing
from finetune_trainer.compute import Compute
from finetune_trainer.loss import LossModel
from finetune_trainer.measure import Engine, make_engine
from finetune_trainer.model import Model, bare
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

    @property
    def words(self) -> str:
        """For the table."""
        return (
            f"{self.layers} layers of {self.hidden}, vocabulary {self.vocabulary:,}, rows of {self.longest // 8:,} to "
            f"{self.longest:,} tokens, {self.rows_per_step} a step"
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
    "8B": Shape(4096, 14336, 32, 32, 8, 128256, longest=4096, rows_per_step=8),
    "small": Shape(2048, 8192, 16, 32, 8, 128256, longest=4096, rows_per_step=8),
}
"""Llama-3.1-8B, and Llama-3.2-1B but for its tied head. Source: config.json of both."""

TINY_SHAPES = {
    "8B": Shape(128, 256, 2, 4, 2, 500, longest=64, rows_per_step=4),
    "small": Shape(64, 128, 2, 4, 2, 500, longest=64, rows_per_step=4),
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
    engine = make_engine(model_for(shape, method, compute.dtype, compute.device), compute, packed, print)
    return engine if bare_head else replace(engine, loss=LossModel(engine.inner, False, compute.autocast))


def engine_without_data(shape: Shape, method: str) -> Engine:
    """The same in bf16 and packed, to be measured by a step without data: its weights take no memory."""
    compute = Compute(torch.device("cpu"), torch.bfloat16)
    model = model_for(shape, method, compute.dtype, torch.device("meta"))
    inner = bare(model)
    return Engine(model, inner, LossModel(inner, True, compute.autocast), compute, Packing.ROWS)


def model_for(shape: Shape, method: str, dtype: torch.dtype, device: torch.device) -> Model:
    """Random weights, and what is trained of them or beside them."""
    model = base_model(shape, torch.float32 if method == "full" else dtype, device)
    if method == "full":
        return model.requires_grad_(True)
    if method == "qlora":
        quantise(model, dtype, device)
    with torch.device(device):
        return attach_adapter(model, Lora(rank=RANK, alpha=ALPHA), seed=0)


def base_model(shape: Shape, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Random weights, made on the device in their final precision."""
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = LlamaForCausalLM._from_config(shape.config(), dtype=dtype)
    return model.train()


def quantise(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
    """Every linear layer but the head as bitsandbytes' NF4, one after another, as loading a model does it."""
    import bitsandbytes

    head = model.get_output_embeddings()
    for path, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or module is head:
            continue
        with torch.device("meta"):
            layer = bitsandbytes.nn.Linear4bit(module.in_features, module.out_features, False, dtype, quant_type="nf4")
        if device.type == "meta":  # What quantising would make: two numbers in a byte.
            data = torch.empty(module.weight.numel() // 2, 1, dtype=torch.uint8, device=device)
        else:
            data = module.weight.data.cpu()
        is_made = device.type == "meta"
        layer.weight = bitsandbytes.nn.Params4bit(data, requires_grad=False, quant_type="nf4", bnb_quantized=is_made)
        if not is_made:
            layer.to(device)
        model.set_submodule(path, layer)
    model.is_loaded_in_4bit = True
