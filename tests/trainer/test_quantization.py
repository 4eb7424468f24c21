"""int8 and nf4 on a CPU: the adapter is really trained, the base stays, and what is merged is the unquantised base."""

from pathlib import Path
from typing import Any

import bitsandbytes.functional as quantise
import pytest
import torch
from finetune_api.resource import TrainingSpec
from finetune_api.training import Lora, Method, Quantization
from finetune_trainer.artifact import write_adapter
from finetune_trainer.compute import Compute
from finetune_trainer.errors import RunError
from finetune_trainer.model import adapted_base, bare, check_on_meta, load_base, load_model, merged_model, trained_count
from finetune_trainer.optimizer import trained_parameters
from finetune_trainer.quantization import check_device, check_model
from peft import PeftModel
from torch import Tensor

from tests.trainer.decoders import a_decoder
from tests.trainer.test_families import IDS, train_a_little
from tests.trainer.test_lora_variants import logits

CPU = Compute(torch.device("cpu"), torch.float32)

FAMILIES = ("llama", "gemma2", "gpt2", "opt", "bloom")
"""GPT-2's matrices lie the other way round; Gemma, GPT-2, OPT and BLOOM have one weight for embedding and head."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for family in (*FAMILIES, "falcon", "qwen3-moe"):
        a_decoder(family).save_pretrained(str(root / family))
    return {family: root / family for family in (*FAMILIES, "falcon", "qwen3-moe")}


def a_training(**method: Any) -> TrainingSpec:
    return TrainingSpec.model_validate(
        {
            "model": {"uri": "hf://a/b"},
            "datasets": [{"name": "d", "uri": "s3://b/d.jsonl"}],
            "output": {"uri": "s3://bucket/models"},
            "method": method,
        }
    )


@pytest.mark.parametrize(
    ("quantization", "lora"),
    [
        (Quantization.INT8, {"rslora": True, "modules_to_save": ["norm"]}),
        (Quantization.NF4, {"dora": True, "modules_to_save": ["lm_head"]}),
    ],
)
def test_a_quantised_base_stays_and_its_adapter_trains_as_many_parameters(
    folders: dict[str, Path], quantization: Quantization, lora: dict[str, Any]
) -> None:
    method = Method(quantization=quantization, lora=Lora(rank=4, **lora))
    plain = load_model(folders["llama"], method.model_copy(update={"quantization": Quantization.NONE}), 0, CPU)
    model = load_model(folders["llama"], method, 0, CPU)
    assert trained_count(model) == trained_count(plain) > 0
    _train_and_compare(model)


@pytest.mark.parametrize("quantization", [Quantization.INT8, Quantization.NF4])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_on_a_quantised_base_and_merges_into_the_unquantised_one(
    folders: dict[str, Path], family: str, quantization: Quantization, tmp_path: Path
) -> None:
    model = load_model(folders[family], Method(quantization=quantization, lora=Lora(rank=4)), 0, CPU)
    assert any("Linear8bit" in repr(module) or "Linear4bit" in repr(module) for module in model.modules())
    _train_and_compare(model)
    assert isinstance(model, PeftModel)
    write_adapter(model, tmp_path, "base", None)
    base = load_base(folders[family], Quantization.NONE, torch.float32, CPU.device)
    wanted = logits(PeftModel.from_pretrained(base, str(tmp_path)))
    merged = merged_model(adapted_base(folders[family], tmp_path, CPU), torch.float32)
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-4)


def test_dora_on_int8_is_refused_on_a_cpu_before_any_weight_is_read(tmp_path: Path) -> None:
    method = Method(quantization=Quantization.INT8, lora=Lora(dora=True))
    with pytest.raises(RunError, match=r"method\.lora\.dora with method\.quantization int8") as caught:
        load_model(tmp_path / "nothing is here", method, 0, CPU)
    assert caught.value.reason == "QuantizationUnsupported"


def _train_and_compare(model: Any) -> None:
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = [p.detach().clone() for p in trained_parameters(model)]
    train_a_little(model)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert not any(torch.equal(a, b) for a, b in zip(trained, trained_parameters(model), strict=True))
    assert {p.dtype for p in trained_parameters(model)} == {torch.float32}


@pytest.mark.parametrize(
    ("family", "words"), [("qwen3-moe", "would leave 75 % of .* qwen3_moe .*experts"), ("falcon", "100 %")]
)
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_model_most_of_which_would_stay_as_it_is_is_refused_with_the_share(
    folders: dict[str, Path], family: str, words: str, quantization: str
) -> None:
    with pytest.raises(RunError, match=words) as caught:
        check_on_meta(folders[family], a_training(quantization=quantization))
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "QuantizationUnsupported")


def test_a_dense_model_is_all_quantised() -> None:
    for family in FAMILIES:
        check_model(a_decoder(family), Quantization.NF4)


@pytest.mark.parametrize("quantization", [Quantization.INT8, Quantization.NF4])
def test_a_device_that_cannot_is_refused_before_any_weight_is_read(
    quantization: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object, **__: object) -> Tensor:
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(quantise, "quantize_4bit", cannot)
    monkeypatch.setattr(quantise, "int8_vectorwise_quant", cannot)
    with pytest.raises(RunError, match="does not run on this cpu: no kernel") as caught:
        load_model(tmp_path / "nothing is here", Method(quantization=quantization), 0, CPU)
    assert caught.value.reason == "QuantizationUnsupported"
    monkeypatch.undo()
    check_device(quantization, torch.device("cpu"))


def test_a_quantised_layer_cannot_be_saved_whole_and_prepare_says_so(folders: dict[str, Path]) -> None:
    with pytest.raises(RunError, match=r"method\.lora\.modulesToSave names .*q_proj.*method\.quantization"):
        check_on_meta(folders["llama"], a_training(quantization="nf4", lora={"modulesToSave": ["q_proj"]}))


def test_what_is_measured_with_a_quantised_base_is_close_to_the_plain_one(folders: dict[str, Path]) -> None:
    plain, small = (
        load_base(folders["llama"], quantization, torch.float32, CPU.device)
        for quantization in (Quantization.NONE, Quantization.INT8)
    )
    with torch.no_grad():
        wanted, found = plain(input_ids=IDS).logits, bare(small)(input_ids=IDS).logits
    assert float((wanted - found).abs().max() / wanted.abs().max()) < 0.1
