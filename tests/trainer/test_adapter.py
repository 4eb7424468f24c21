"""Rule M and acceptance case 11: which modules LoRA adapts, and that it trains them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.resource import TrainingSpec
from finetune_api.training import Lora, Method, MethodType, Quantization
from finetune_trainer.adapter import adapter_without_weights, attach_adapter, continue_adapter
from finetune_trainer.compute import Compute
from finetune_trainer.errors import RunError
from finetune_trainer.model import bare, check_on_meta, load_model, trained_count
from finetune_trainer.optimizer import trained_parameters
from finetune_trainer.targets import resolve_targets

from tests.trainer.decoders import a_decoder
from tests.trainer.test_families import train_a_little
from tests.trainer.tiny import a_model_folder

CPU = Compute(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_model_folder(tmp_path_factory.mktemp("model"))


def a_training(method: Method) -> TrainingSpec:
    return TrainingSpec.model_validate(
        {
            "model": {"uri": "hf://a/b"},
            "datasets": [{"name": "d", "uri": "s3://b/d.jsonl"}],
            "output": {"uri": "s3://bucket/models"},
            "method": method.to_json(),
        }
    )


def test_the_adapters_config_names_last_parts_in_a_fixed_order() -> None:
    tuned = attach_adapter(a_decoder(), Lora(), seed=0)
    wanted = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert tuned.peft_config["default"].target_modules == wanted


def test_a_single_target_adapts_all_its_outputs() -> None:
    tuned = attach_adapter(a_decoder(), Lora(rank=4, target_modules=["q_proj"]), seed=0)
    train_a_little(tuned)
    layer = bare(tuned).model.layers[0].self_attn.q_proj
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert bool((update.abs().sum(dim=1) > 0).all())


def test_a_name_that_matches_nothing_is_refused_with_the_modules_there_are() -> None:
    with pytest.raises(RunError, match=r"'nope'.*there are 'q_proj', 'k_proj'") as caught:
        attach_adapter(a_decoder(), Lora(target_modules=["q_proj", "nope"]), seed=0)
    assert caught.value.reason == "TargetModulesNotFound"
    assert "'q_proj', which" not in caught.value.message


def test_the_nearest_names_are_shown_first() -> None:
    with pytest.raises(RunError, match=r"nearest is 'q_proj', .*; there are"):
        attach_adapter(a_decoder(), Lora(target_modules=["qproj"]), seed=0)


def test_part_of_a_name_matches_nothing() -> None:
    with pytest.raises(RunError, match="'proj'"):
        resolve_targets(a_decoder(), Lora(target_modules=["proj"]))


def test_a_regex_matches_whole_paths_of_linear_modules() -> None:
    found = resolve_targets(a_decoder(), Lora(target_modules=[r"regex:model\.layers\.1\.self_attn.*"]))
    assert found.modules == [f"model.layers.1.self_attn.{part}_proj" for part in "koqv"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["regex:q_proj"], "TargetModulesNotFound"),
        (["regex:("], "TargetModulesInvalid"),
        (["regex:.*", "q_proj"], "TargetModulesInvalid"),
    ],
)
def test_a_regex_that_cannot_serve_is_refused(names: list[str], reason: str) -> None:
    with pytest.raises(RunError) as caught:
        resolve_targets(a_decoder(), Lora(target_modules=names))
    assert caught.value.reason == reason


def test_the_adapters_start_depends_on_the_seed_alone() -> None:
    def start(seed: int) -> torch.Tensor:
        tuned = attach_adapter(a_decoder(), Lora(), seed=seed)
        return torch.cat([p.detach().flatten() for p in trained_parameters(tuned)])

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_an_adapter_is_trained_further_from_where_it_was(tmp_path: Path) -> None:
    first = attach_adapter(a_decoder(), Lora(rank=4, alpha=8), seed=0)
    train_a_little(first)
    first.save_pretrained(str(tmp_path))
    second = continue_adapter(a_decoder(), tmp_path, None)
    for old, new in zip(trained_parameters(first), trained_parameters(second), strict=True):
        assert torch.equal(old, new)
        assert new.requires_grad


def a_stored_adapter(folder: Path, family: str = "llama", **lora: Any) -> Path:
    given = Lora(**{"rank": 4, "alpha": 8, **lora})
    attach_adapter(a_decoder(family), given, seed=0).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"rank": 16}, r": rank 16, but the adapter has 4$"),
        ({"alpha": 32}, r": alpha 32, but the adapter has 8$"),
        ({"dropout": 0.5}, r": dropout 0\.5, but the adapter has 0\.1$"),
        ({"target_modules": ["q_proj"]}, r": targetModules 'q_proj', but the adapter has 'k_proj', 'q_proj'$"),
        ({"target_modules": ["all-linear"]}, r": targetModules 'all-linear', but the adapter has 'k_proj', 'q_proj'$"),
        ({"rank": 2, "dropout": 0.0}, r": rank 2, .* has 4; dropout 0, .* has 0\.1$"),
    ],
)
def test_another_adapter_than_the_stored_one_is_refused_with_field_and_both_values(
    tmp_path: Path, asked: dict[str, Any], words: str
) -> None:
    there: dict[str, Any] = {"rank": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj", "k_proj"]}
    a_stored_adapter(tmp_path, **there)
    for start in (continue_adapter, adapter_without_weights):
        with pytest.raises(RunError, match=words) as caught:
            start(a_decoder(), tmp_path, Lora(**{**there, **asked}))
        assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "AdapterMismatch")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_same_modules_by_another_name_are_the_same_adapter(tmp_path: Path, family: str) -> None:
    a_stored_adapter(tmp_path, family)
    continue_adapter(a_decoder(family), tmp_path, Lora(rank=4, alpha=8))


def test_modules_by_regex_are_compared_by_what_they_match(tmp_path: Path) -> None:
    a_stored_adapter(tmp_path, target_modules=[r"regex:model\.layers\.1\.self_attn\.(q|k)_proj"])
    same = Lora(rank=4, alpha=8, target_modules=[r"regex:.*\.1\.self_attn\.[qk]_proj"])
    continue_adapter(a_decoder(), tmp_path, same)
    with pytest.raises(RunError, match="targetModules 'q_proj', 'k_proj'"):
        continue_adapter(a_decoder(), tmp_path, Lora(rank=4, alpha=8, target_modules=["q_proj", "k_proj"]))


def test_without_method_lora_the_adapters_own_settings_hold(tmp_path: Path) -> None:
    a_stored_adapter(tmp_path, dropout=0.1, target_modules=["q_proj"])
    config = continue_adapter(a_decoder(), tmp_path, None).peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, set(config.target_modules)) == (4, 8, 0.1, {"q_proj"})


@pytest.mark.parametrize("method", [Method(), Method(type=MethodType.FULL), Method(quantization=Quantization.NF4)])
def test_the_check_without_weights_counts_what_is_trained(folder: Path, method: Method) -> None:
    check = check_on_meta(folder, a_training(method))
    model = load_model(folder, method.model_copy(update={"quantization": Quantization.NONE}), 0, CPU)
    assert check.trainable == trained_count(model)
    assert check.parameters == sum(p.numel() for p in bare(model).parameters() if method.type is MethodType.FULL) or (
        check.parameters == sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    )


def test_a_config_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(RunError, match="transformers does not know this model") as caught:
        check_on_meta(tmp_path, a_training(Method()))
    assert caught.value.reason == "ModelUnsupported"
