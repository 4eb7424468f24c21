"""Code that comes with a model: never run unasked, run where it is trusted, and never fetched from elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.resource import TrainingSpec
from finetune_trainer.errors import RunError
from finetune_trainer.model import check_on_meta
from finetune_trainer.model_config import check_decoder, read_config
from finetune_trainer.vocabulary import load_tokenizer

from tests.trainer.tiny import a_model_folder, a_tokenizer_folder

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

open(__file__ + ".ran", "w").close()


class OwnConfig(LlamaConfig):
    model_type = "own-llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""

OWN = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


def a_training(trusted: bool) -> TrainingSpec:
    return TrainingSpec.model_validate(
        {
            "model": {"uri": "hf://a/b", "trustRemoteCode": trusted},
            "datasets": [{"name": "d", "uri": "s3://b/d.jsonl"}],
            "output": {"uri": "s3://bucket/models"},
        }
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of a type that only its own code knows."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    found = a_model_folder(tmp_path / "own-model", weights=False)
    change(found, model_type="own-llama", architectures=["OwnForCausalLM"], auto_map=OWN)
    (found / "modeling_own.py").write_text(CODE)
    return found


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def has_run(folder: Path) -> bool:
    return bool(list(folder.parent.rglob("*.ran")))


def test_without_trust_it_is_refused_and_not_run(folder: Path) -> None:
    with pytest.raises(RunError, match=r"modeling_own\.OwnConfig.*model\.trustRemoteCode is false") as caught:
        check_on_meta(folder, a_training(trusted=False))
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "RemoteCodeForbidden")
    assert "settings.allowRemoteCode" in caught.value.remedy
    assert not has_run(folder)


def test_with_trust_it_runs(folder: Path) -> None:
    check = check_on_meta(folder, a_training(trusted=True))
    assert check.trainable > 0
    assert has_run(folder)


def test_a_type_that_transformers_knows_needs_no_code_of_its_own(folder: Path) -> None:
    change(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    assert check_on_meta(folder, a_training(trusted=False)).trainable > 0
    assert not has_run(folder)


def test_code_of_another_repository_is_refused_also_with_trust(folder: Path) -> None:
    change(folder, auto_map={"AutoConfig": "org/repo--modeling_own.OwnConfig"})
    with pytest.raises(RunError, match=r"another repository \(org/repo--") as caught:
        check_decoder(read_config(folder, "hf://a/b"), "hf://a/b", trusted=True)
    assert caught.value.reason == "RemoteCodeForbidden"


def test_a_tokenizer_with_code_of_its_own_is_refused_too(tmp_path: Path) -> None:
    folder = a_tokenizer_folder(tmp_path)
    (folder / "tokenizer.json").unlink()
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"tokenization_own\.Own") as caught:
        load_tokenizer(folder)
    assert caught.value.reason == "RemoteCodeForbidden"
