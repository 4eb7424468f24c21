"""Packing is tried out on a tiny copy of the model: what it finds, and that it would find a leak."""

import time

import pytest
import torch
from finetune_api.training import Lora
from finetune_trainer import attention, probe
from finetune_trainer.adapter import attach_adapter
from finetune_trainer.batch import Packing
from finetune_trainer.compute import Compute
from finetune_trainer.measure import make_engine
from finetune_trainer.probe import PROBE_LENGTHS, UNPACKED, find_packing, packing_of
from finetune_trainer.tiny_copy import HIDDEN, MOST_LAYERS, WINDOW, tiny_config, tiny_copy
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from tests.trainer.decoders import PACKED, a_decoder
from tests.trainer.decoders import UNPACKED as CARRYING

CPU = Compute(torch.device("cpu"), torch.float32)


def on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of any size, without weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        return model


@pytest.mark.parametrize("family", PACKED)
def test_rows_of_a_transformer_are_packed(family: str) -> None:
    found = find_packing(a_decoder(family), CPU)
    assert found is (Packing.BLOCKS if family == "falcon" else Packing.ROWS)


@pytest.mark.parametrize("family", CARRYING)
def test_rows_that_would_see_each_other_are_not_packed_and_a_warning_says_so(family: str) -> None:
    warnings: list[str] = []
    engine = make_engine(a_decoder(family), CPU, True, warnings.append)
    assert (engine.packed, warnings) == (False, [UNPACKED])


def test_nobody_is_warned_of_what_he_turned_off() -> None:
    warnings: list[str] = []
    assert not make_engine(a_decoder("mamba"), CPU, False, warnings.append).packed
    assert warnings == []


@pytest.mark.parametrize(
    "config",
    [
        Gemma3TextConfig(num_hidden_layers=26),
        GptOssConfig(num_hidden_layers=24),
        DeepseekV3Config(num_hidden_layers=6),
        Ministral3Config(num_hidden_layers=4),
    ],
    ids=lambda config: config.model_type,
)
def test_models_of_full_size_are_packed_without_any_weight(
    config: PreTrainedConfig,
) -> None:
    assert find_packing(on_meta(config), CPU) is Packing.ROWS


def test_chunked_attention_which_no_layer_tells_of_is_found_out() -> None:
    assert find_packing(on_meta(Llama4TextConfig(num_hidden_layers=8)), CPU) is Packing.NONE


def test_a_window_that_is_ignored_is_found_out_though_the_models_own_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_meta(MistralConfig(sliding_window=4096, num_hidden_layers=4))
    assert find_packing(model, CPU) is Packing.ROWS
    real = attention.row_attention

    def without_window(*arguments: object, **named: object) -> object:
        return real(*arguments, **named | {"sliding_window": None})  # type: ignore[arg-type]

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.ROW_ATTENTION, without_window)
    assert find_packing(model, CPU) is Packing.NONE


def test_a_mask_of_blocks_that_overrides_a_window_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_meta(MistralConfig(sliding_window=4096, num_hidden_layers=2))
    monkeypatch.setattr(probe, "rows_attended", lambda decoder, _: attention.rows_attended(decoder, Packing.BLOCKS))
    assert find_packing(model, CPU) is Packing.NONE


def test_a_probe_that_notices_nothing_proves_nothing() -> None:
    copied = tiny_copy(a_decoder().get_decoder())
    assert copied is not None
    assert packing_of(copied, CPU) is Packing.ROWS
    for layer in copied.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    assert packing_of(copied, CPU) is Packing.NONE


def test_a_model_that_raises_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_decoder()

    def broken(*_: object, **__: object) -> None:
        raise LookupError("of its own kind")

    monkeypatch.setattr(type(model.get_decoder()), "forward", broken)
    assert find_packing(model, CPU) is Packing.NONE


def test_the_copy_is_narrow_and_its_window_shorter_than_the_rows() -> None:
    config = tiny_config(MistralConfig(sliding_window=4096))
    assert (config.hidden_size, config.num_hidden_layers, config.sliding_window) == (HIDDEN, MOST_LAYERS, WINDOW)
    assert config.num_attention_heads // config.num_key_value_heads == 2
    assert min(PROBE_LENGTHS) > 2 * WINDOW


def test_a_pattern_longer_than_the_copy_keeps_all_layers() -> None:
    kinds = ["sliding_attention"] * 15 + ["full_attention"]
    config = tiny_config(Gemma3TextConfig(num_hidden_layers=16, layer_types=kinds))
    assert config.layer_types == kinds


def test_a_model_whose_copy_would_miss_one_of_its_parts_is_not_packed() -> None:
    model = a_decoder()
    model.model.extra = torch.nn.ModuleList(a_decoder("mamba").backbone.layers)
    assert find_packing(model, CPU) is Packing.NONE


def test_an_adapter_changes_nothing_and_a_large_model_costs_no_more() -> None:
    tuned = attach_adapter(on_meta(LlamaConfig()), Lora(), seed=0)
    started = time.monotonic()
    assert find_packing(tuned.get_base_model(), CPU) is Packing.ROWS
    assert time.monotonic() - started < 30


def test_the_copy_leaves_the_random_state_alone() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    find_packing(a_decoder(), CPU)
    assert torch.equal(torch.rand(1), wanted)
