"""What prepare finds out about the model, told in the status before anybody asks for a GPU."""

from pathlib import Path
from typing import Any

import pytest
from finetune_api.run import RunResult
from finetune_trainer.errors import RunError
from finetune_trainer.prepare import prepare
from finetune_trainer.probe import UNPACKED
from finetune_trainer.store import open_store

from tests.trainer.decoders import CONFIGS
from tests.trainer.runs import PAIR_TEMPLATES, a_dataset, a_run, some_pairs, write_jsonl
from tests.trainer.tiny import a_tokenizer_folder


def prepared(tmp_path: Path, family: str, **training: Any) -> RunResult:
    """The result for a run on a model of the family, of which there is no weight."""
    folder = a_tokenizer_folder(tmp_path / "model")
    config = CONFIGS[family]()
    config.update({"vocab_size": 128, "architectures": ["AnyForCausalLM"]})
    config.save_pretrained(str(folder))
    (folder / "model.safetensors").write_bytes(b"")
    rows = write_jsonl(tmp_path / "rows.jsonl", some_pairs(8))
    run = a_run(tmp_path, folder, [a_dataset(rows)], **PAIR_TEMPLATES, **training)
    return prepare(run, open_store(run.output_uri, run.storage), lambda _: None)


def test_a_model_whose_rows_would_see_each_other_is_padded_and_the_status_says_so(tmp_path: Path) -> None:
    found = prepared(tmp_path, "bloom")
    assert found.data is not None
    assert found.data.warnings == [UNPACKED]
    assert found.effective_hyperparameters is not None
    assert found.effective_hyperparameters.packing is False


def test_a_model_that_packs_is_packed_unless_it_is_turned_off(tmp_path: Path) -> None:
    for number, (wanted, hyperparameters) in enumerate([(True, {}), (False, {"packing": False})]):
        found = prepared(tmp_path / str(number), "opt", hyperparameters=hyperparameters)
        assert found.data is not None
        assert found.data.warnings == []
        assert found.effective_hyperparameters is not None
        assert found.effective_hyperparameters.packing is wanted


def test_experts_that_stay_as_they_are_are_told_in_the_status(tmp_path: Path) -> None:
    found = prepared(tmp_path, "qwen3-moe", method={"lora": {"dropout": 0.1}})
    assert found.data is not None
    assert [warning for warning in found.data.warnings if "fused expert weights" in warning]


def test_experts_that_would_stay_unquantised_are_refused_with_their_share(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nf4 would leave 75 %") as caught:
        prepared(tmp_path, "qwen3-moe", method={"quantization": "nf4"})
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "QuantizationUnsupported")
