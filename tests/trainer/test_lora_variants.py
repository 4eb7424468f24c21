"""DoRA, rsLoRA and modules trained whole: each does what it says, is stored, and is continued as what it is."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.training import Lora
from finetune_trainer.adapter import attach_adapter, continue_adapter
from finetune_trainer.artifact import write_adapter
from finetune_trainer.errors import RunError
from finetune_trainer.fused_lora import fuse_adapters
from finetune_trainer.model import bare, merge
from finetune_trainer.optimizer import trained_parameters
from finetune_trainer.saved_modules import check_not_quantised, resolve_saved
from peft import PeftModel
from transformers import PreTrainedModel

from tests.trainer.decoders import a_decoder
from tests.trainer.test_families import IDS, train_a_little

VARIANTS: list[dict[str, Any]] = [
    {"dora": True},
    {"rslora": True},
    {"modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    {"dora": True, "rslora": True, "modules_to_save": ["lm_head"]},
]


def logits(model: PeftModel | PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
        return found


def a_tuned_model(family: str = "llama", tied: bool = False, **lora: Any) -> PeftModel:
    tuned = attach_adapter(a_decoder(family, tie_word_embeddings=tied), Lora(rank=4, alpha=8, **lora), seed=0)
    train_a_little(tuned)
    return tuned


@pytest.mark.parametrize("lora", VARIANTS)
def test_a_variant_trains_all_it_adds_and_is_the_same_when_loaded_continued_and_merged(
    lora: dict[str, Any], tmp_path: Path
) -> None:
    fresh = attach_adapter(a_decoder(), Lora(rank=4, alpha=8, **lora), seed=0)
    start = {name: p.detach().clone() for name, p in fresh.named_parameters()}
    train_a_little(fresh)
    changed = {name for name, p in fresh.named_parameters() if not torch.equal(p, start[name])}
    assert changed == {name for name, p in fresh.named_parameters() if p.requires_grad}
    write_adapter(fresh, tmp_path, "base", None)
    wanted = logits(fresh)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(a_decoder(), str(tmp_path))), wanted)
    continued = continue_adapter(a_decoder(), tmp_path, Lora(rank=4, alpha=8, **lora))
    torch.testing.assert_close(logits(continued), wanted)
    assert [p.shape for p in trained_parameters(continued)] == [p.shape for p in trained_parameters(fresh)]
    assert float((logits(merge(fresh)) - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_dora_adds_one_length_for_each_output() -> None:
    plain, dora = (attach_adapter(a_decoder(), Lora(rank=4, dora=dora), seed=0) for dora in (False, True))
    more = sum(p.numel() for p in trained_parameters(dora)) - sum(p.numel() for p in trained_parameters(plain))
    assert more == sum(layer.weight.shape[0] for layer in _adapted(plain))
    assert fuse_adapters(bare(dora)) == 0


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    tuned = attach_adapter(a_decoder(), Lora(rank=16, alpha=8, rslora=True), seed=0)
    assert {layer.scaling["default"] for layer in _adapted(tuned)} == {8 / math.sqrt(16)}
    assert fuse_adapters(bare(tuned)) == 14


def test_a_fused_rslora_gives_the_same_logits() -> None:
    tuned = a_tuned_model(rslora=True)
    wanted = logits(tuned)
    fuse_adapters(bare(tuned))
    torch.testing.assert_close(logits(tuned), wanted, rtol=1e-4, atol=1e-5)


def _adapted(model: PeftModel) -> list[Any]:
    return [module for module in bare(model).modules() if hasattr(module, "lora_A")]


def test_modules_to_save_are_trained_in_fp32_whatever_the_base_is_stored_in() -> None:
    tuned = attach_adapter(a_decoder().to(torch.bfloat16), Lora(modules_to_save=["lm_head"]), seed=0)
    assert {p.dtype for p in trained_parameters(tuned)} == {torch.float32}
    assert bare(tuned).lm_head.original_module.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("names", [["embed_tokens"], ["lm_head"], ["lm_head", "embed_tokens"]])
def test_tied_embedding_and_head_are_trained_as_the_one_weight_that_they_are(names: list[str], tmp_path: Path) -> None:
    tuned = a_tuned_model(tied=True, modules_to_save=names)
    embedding, head = bare(tuned).get_input_embeddings(), bare(tuned).get_output_embeddings()
    assert embedding.weight is head.weight
    assert embedding.weight.requires_grad
    assert sum(p.numel() == embedding.weight.numel() for p in trained_parameters(tuned)) == 1
    wanted = logits(tuned)
    write_adapter(tuned, tmp_path, "base", None)
    base = a_decoder(tie_word_embeddings=True)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, str(tmp_path))), wanted)
    continued = continue_adapter(
        a_decoder(tie_word_embeddings=True), tmp_path, Lora(rank=4, alpha=8, modules_to_save=names)
    )
    torch.testing.assert_close(logits(continued), wanted)
    merged = merge(tuned)
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-5)


def test_a_tie_that_peft_would_cut_is_refused_with_the_reason() -> None:
    with pytest.raises(RunError, match=r"'transformer\.wte'.*are one weight.*embed_tokens") as caught:
        resolve_saved(a_decoder("gpt2"), ["wte"])
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "TiedWeights")


def test_an_adapter_on_a_tied_head_is_refused_since_merging_would_change_the_embedding() -> None:
    with pytest.raises(RunError, match="shares with its embedding") as caught:
        attach_adapter(a_decoder(tie_word_embeddings=True), Lora(target_modules=["lm_head"]), seed=0)
    assert caught.value.reason == "TargetModulesInvalid"


@pytest.mark.parametrize(
    ("name", "words"), [("lmhead", "nearest is 'lm_head'"), ("layers", "there are 'embed_tokens'")]
)
def test_a_module_to_save_that_is_not_there_is_refused_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(RunError, match=words) as caught:
        resolve_saved(a_decoder(), [name])
    assert caught.value.reason == "ModulesToSaveNotFound"


def test_modules_to_save_that_leave_nothing_to_adapt_are_refused() -> None:
    with pytest.raises(RunError, match="names every module that targetModules does") as caught:
        attach_adapter(a_decoder(), Lora(target_modules=["q_proj"], modules_to_save=["q_proj", "norm"]), seed=0)
    assert caught.value.reason == "ModulesToSaveInvalid"


def test_part_of_a_name_saves_nothing_else() -> None:
    saved = resolve_saved(a_decoder(), ["norm"])
    assert saved.names == ["model.norm"]


def test_a_quantised_layer_cannot_be_trained_whole() -> None:
    check_not_quantised(a_decoder(), ["lm_head", "norm"])
    with pytest.raises(RunError, match=r"'model\.layers\.0\.self_attn\.q_proj'.*method\.quantization"):
        check_not_quantised(a_decoder(), ["q_proj"])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"dora": True}, "dora true, but the adapter has false"),
        ({"rslora": True}, "rslora true, but the adapter has false"),
        ({"modules_to_save": ["lm_head"]}, "modulesToSave 'lm_head', but the adapter has none"),
    ],
)
def test_another_variant_than_the_stored_one_is_refused(asked: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_adapter(a_tuned_model(), tmp_path, "base", None)
    with pytest.raises(RunError, match=words):
        continue_adapter(a_decoder(), tmp_path, Lora(rank=4, alpha=8, **asked))


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path: Path) -> None:
    write_adapter(a_tuned_model(target_modules=["q_proj"]), tmp_path, "base", None)
    weights = (tmp_path / "adapter_model.safetensors").read_bytes()
    write_adapter(a_tuned_model(target_modules=["q_proj", "k_proj"]), tmp_path, "base", None)
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(RunError, match="missing 'base_model") as caught:
        continue_adapter(a_decoder(), tmp_path, None)
    assert caught.value.reason == "AdapterInvalid"


def test_another_kind_of_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(RunError, match="another kind of adapter, IA3Config"):
        continue_adapter(a_decoder(), tmp_path, None)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_was_cut_is_refused(name: str, tmp_path: Path) -> None:
    write_adapter(a_tuned_model(), tmp_path, "base", None)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-10])
    with pytest.raises(RunError) as caught:
        continue_adapter(a_decoder(), tmp_path, None)
    assert caught.value.reason == "AdapterInvalid"
