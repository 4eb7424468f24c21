"""The base model's files: what is taken, what is refused, and the revision that names them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_api.resource import TrainingSpec
from finetune_api.run import RunSpec
from finetune_trainer.errors import RunError
from finetune_trainer.fetch import fetch_model

from tests.trainer.fake_hub import COMMIT, fake_hub
from tests.trainer.runs import a_dataset, a_run
from tests.trainer.tiny import a_model_folder


def a_served_model(tmp_path: Path) -> Path:
    """A model folder whose weights nobody loads, with files beside them that nobody should take."""
    folder = a_model_folder(tmp_path / "served", weights=False)
    (folder / "model.safetensors").write_bytes(b"weights")
    for name in ("pytorch_model.bin", "modeling_custom.py", "consolidated.safetensors", "README.md"):
        (folder / name).write_bytes(b"not wanted")
    return folder


def a_model_run(tmp_path: Path, model: Path | str, **more: Any) -> RunSpec:
    spec = a_run(tmp_path, model, [a_dataset(tmp_path / "rows.jsonl")])
    return RunSpec.model_validate(spec.to_json() | more)


def a_refusal(tmp_path: Path, model: Path | str, **more: Any) -> RunError:
    with pytest.raises(RunError) as caught:
        fetch_model(a_model_run(tmp_path, model, **more), tmp_path / "scratch", weights=True)
    return caught.value


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


SMALL = ["config.json", "tokenizer.json", "tokenizer_config.json"]


def test_without_weights_only_config_and_tokenizer_come(tmp_path: Path) -> None:
    files = fetch_model(a_model_run(tmp_path, a_served_model(tmp_path)), tmp_path / "scratch", weights=False)
    assert names(files.folder) == SMALL


def test_with_weights_neither_pickle_nor_code_nor_a_second_copy_comes(tmp_path: Path) -> None:
    files = fetch_model(a_model_run(tmp_path, a_served_model(tmp_path)), tmp_path / "scratch", weights=True)
    assert names(files.folder) == sorted([*SMALL, "model.safetensors"])


def test_code_comes_only_with_a_model_that_is_trusted_and_belongs_to_its_revision(tmp_path: Path) -> None:
    served, scratch = a_served_model(tmp_path), tmp_path / "scratch"
    run = a_model_run(tmp_path, served)
    trusting = run.model_copy(update={"training": trusted(run.training)})
    first = fetch_model(trusting, scratch, weights=False)
    assert names(first.folder) == sorted([*SMALL, "modeling_custom.py"])
    (served / "modeling_custom.py").write_bytes(b"changed")
    assert fetch_model(trusting, scratch, weights=False).revision != first.revision
    plain = fetch_model(run, scratch, weights=False).revision
    (served / "modeling_custom.py").write_bytes(b"changed again")
    assert fetch_model(run, scratch, weights=False).revision == plain


def trusted(training: TrainingSpec) -> TrainingSpec:
    return training.model_copy(update={"model": training.model.model_copy(update={"trust_remote_code": True})})


def test_of_shards_those_come_that_the_index_names(tmp_path: Path) -> None:
    served = a_served_model(tmp_path)
    (served / "model.safetensors").unlink()
    (served / "model-1-of-1.safetensors").write_bytes(b"shard")
    index = {"weight_map": {"a": "model-1-of-1.safetensors"}}
    (served / "model.safetensors.index.json").write_text(json.dumps(index))
    files = fetch_model(a_model_run(tmp_path, served), tmp_path / "scratch", weights=True)
    assert [name for name in names(files.folder) if name.endswith(".safetensors")] == ["model-1-of-1.safetensors"]
    (served / "model-1-of-1.safetensors").unlink()
    assert "'model-1-of-1.safetensors', which is not there" in a_refusal(tmp_path, served).message


def test_the_revision_changes_with_any_file_that_is_used_and_with_nothing_else(tmp_path: Path) -> None:
    served, scratch = a_served_model(tmp_path), tmp_path / "scratch"
    run = a_model_run(tmp_path, served)
    first = fetch_model(run, scratch, weights=False).revision
    (served / "README.md").write_text("changed")
    assert fetch_model(run, scratch, weights=True).revision == first
    (served / "model.safetensors").write_bytes(b"Weights")
    assert fetch_model(run, scratch, weights=False).revision != first


def test_training_refuses_a_model_that_changed_since_prepare(tmp_path: Path) -> None:
    refusal = a_refusal(tmp_path, a_served_model(tmp_path), resolved={"modelRevision": "sha256:other"})
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "ModelChanged")


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    refusal = a_refusal(tmp_path, tmp_path / "nowhere")
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "ModelNotFound")
    assert f"nothing at file://{tmp_path}/nowhere" in refusal.message


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    served = a_served_model(tmp_path)
    (served / "config.json").unlink()
    refusal = a_refusal(tmp_path, served)
    assert refusal.reason == "ModelNotFound"
    assert "holds no config.json" in refusal.message


def test_a_model_without_safetensors_is_refused_with_what_it_has_and_a_remedy(tmp_path: Path) -> None:
    served = a_served_model(tmp_path)
    for name in ("model.safetensors", "consolidated.safetensors"):
        (served / name).unlink()
    refusal = a_refusal(tmp_path, served)
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "NoSafetensors")
    assert "'pytorch_model.bin'" in refusal.message
    assert "save_pretrained" in refusal.remedy


def test_an_image_model_is_unsupported(tmp_path: Path) -> None:
    served = a_served_model(tmp_path)
    (served / "model_index.json").write_text("{}")
    assert a_refusal(tmp_path, served).reason == "ModelUnsupported"


def an_adapter(tmp_path: Path, lock: object) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"adapter")
    if lock is not None:
        (folder / "run.lock.json").write_text(json.dumps(lock))
    return folder


def test_an_adapter_brings_the_base_that_its_lock_file_names(tmp_path: Path) -> None:
    base = a_served_model(tmp_path)
    adapter = an_adapter(tmp_path, {"base": {"uri": f"file://{base}", "revision": None}})
    files = fetch_model(a_model_run(tmp_path, adapter), tmp_path / "scratch", weights=False)
    assert names(files.folder) == ["adapter_config.json", "adapter_model.safetensors", "run.lock.json"]
    assert files.adapter == files.folder
    assert names(files.model.folder) == SMALL
    assert files.model.uri == f"file://{base}"


def test_a_model_on_a_volume_is_called_what_the_user_calls_it(tmp_path: Path) -> None:
    run = a_model_run(tmp_path, a_served_model(tmp_path), resolved={"modelUri": "pvc://models/tiny"})
    assert fetch_model(run, tmp_path / "scratch", weights=False).uri == "pvc://models/tiny"


@pytest.mark.parametrize("known_as", ["s3://models/adapter", "pvc://models/adapter", "hf://org/adapter"])
@pytest.mark.parametrize(
    "base", ["file:///finetune/secrets", "pvc://models/tiny", "/finetune/secrets", "http://x/y", 7]
)
def test_a_lock_file_from_elsewhere_names_a_base_on_the_hub_or_in_s3_only(
    tmp_path: Path, known_as: str, base: object
) -> None:
    adapter = an_adapter(tmp_path, {"base": {"uri": base, "revision": None}})
    refusal = a_refusal(tmp_path, adapter, resolved={"modelUri": known_as})
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "BaseModelUnreachable")
    assert f"run.lock.json of {known_as} names '{base}'" in refusal.message


def test_a_base_on_a_volume_is_refused_also_where_the_adapter_lies_in_a_folder(tmp_path: Path) -> None:
    refusal = a_refusal(tmp_path, an_adapter(tmp_path, {"base": {"uri": "pvc://models/tiny", "revision": None}}))
    assert refusal.reason == "BaseModelUnreachable"
    assert "'pvc://models/tiny'" in refusal.message
    assert "merged" in refusal.remedy


def test_an_adapter_whose_base_is_an_adapter_is_refused_and_not_followed_for_ever(tmp_path: Path) -> None:
    adapter = an_adapter(tmp_path, {"base": {"uri": f"file://{tmp_path}/adapter", "revision": None}})
    refusal = a_refusal(tmp_path, adapter)
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "ModelUnsupported")


@pytest.mark.parametrize("lock", [None, {}, []])
def test_an_adapter_without_readable_lock_file_is_a_clear_error(tmp_path: Path, lock: object) -> None:
    refusal = a_refusal(tmp_path, an_adapter(tmp_path, lock))
    assert (refusal.failure_class, refusal.reason) == ("InvalidConfig", "NoLockFile")


FETCH = """
import sys
from pathlib import Path
from finetune_api.run import RunSpec
from finetune_trainer.fetch import fetch_model
files = fetch_model(RunSpec.model_validate_json(sys.argv[1]), Path(sys.argv[2]), weights=True)
print(files.uri, files.revision)
"""


def test_a_hub_model_comes_at_one_commit_from_where_hf_endpoint_says(tmp_path: Path) -> None:
    spec = a_model_run(tmp_path, "hf://org/tiny").model_dump_json(by_alias=True)
    with fake_hub() as hub:
        hub.models["org/tiny"] = a_served_model(tmp_path)
        command = [sys.executable, "-c", FETCH, spec, str(tmp_path / "scratch")]
        # The hub's library reads HF_ENDPOINT once, as it is imported: hence another process.
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint}
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["hf://org/tiny", COMMIT]
    assert names(tmp_path / "scratch" / "model") == sorted([*SMALL, "model.safetensors"])
