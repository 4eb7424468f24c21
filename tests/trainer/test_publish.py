"""Rule A: only the manifest counts, exactly one writer can create it, and a failure before it publishes nothing."""

import hashlib
import json
from pathlib import Path

import pytest
from finetune_api.findings import EffectiveHyperparameters, Resolved
from finetune_api.names import MANIFEST_FILE, FailureClass, Stage
from finetune_api.progress import Metrics
from finetune_api.run import RunIdentity, RunResult, RunSpec
from finetune_trainer.errors import RunError
from finetune_trainer.publish import existing_result, publish
from finetune_trainer.store import FileStore

from tests.trainer.runs import a_run

RESULT = RunResult(stage=Stage.TRAIN, metrics=Metrics(training_loss=0.5))


class FailingStore(FileStore):
    """Fails when the named file is uploaded or checked."""

    def __init__(self, folder: Path, at: str) -> None:
        super().__init__(folder)
        self.at = at

    def verify(self, key: str, path: Path) -> None:
        if key.endswith(self.at):
            raise RunError(FailureClass.INFRASTRUCTURE, "UploadDamaged", f"{key} is damaged")
        super().verify(key, path)


@pytest.fixture
def run(tmp_path: Path) -> RunSpec:
    return a_run(tmp_path, "hf://a/b", [{"name": "d", "uri": "s3://b/d.jsonl"}])


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "out")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "sub").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "sub" / "README.md").write_bytes(b"card")
    return folder


def test_the_manifest_names_every_file_with_its_size_and_digest(run: RunSpec, store: FileStore, artifact: Path) -> None:
    result = publish(store, run, artifact, "0123456789", "adapter", RESULT)
    data = store.get_bytes(MANIFEST_FILE)
    files = {file["name"]: file for file in json.loads(data)["files"]}
    assert files["adapter_model.safetensors"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert store.get_bytes("artifacts/1-01234567/sub/README.md") == b"card"
    assert result.artifact is not None
    assert (result.artifact.files, result.artifact.bytes) == (2, 11)
    assert result.artifact.sha256 == hashlib.sha256(data).hexdigest()
    assert result.artifact.uri == f"{store.uri}/artifacts/1-01234567"
    assert result.metrics == RESULT.metrics


def test_nothing_is_published_before_the_first_time(run: RunSpec, store: FileStore) -> None:
    assert existing_result(store, run) is None


def test_a_later_attempt_finds_the_same_result(run: RunSpec, store: FileStore, artifact: Path) -> None:
    result = publish(store, run, artifact, "0123456789", "adapter", RESULT)
    assert existing_result(store, run) == result


def test_a_twin_that_comes_second_returns_the_firsts_result(run: RunSpec, store: FileStore, artifact: Path) -> None:
    first = publish(store, run, artifact, "aaaaaaaa", "adapter", RESULT)
    other = RunResult(stage=Stage.TRAIN, metrics=Metrics(training_loss=9.0))
    assert publish(store, run, artifact, "bbbbbbbb", "adapter", other) == first


def test_another_runs_output_is_never_taken_over(run: RunSpec, store: FileStore, artifact: Path) -> None:
    publish(store, run, artifact, "aaaaaaaa", "adapter", RESULT)
    before = store.get_bytes(MANIFEST_FILE)
    other = run.model_copy(update={"identity": RunIdentity(namespace="team-a", name="story", uid="another")})
    for attempt in (lambda: existing_result(store, other), lambda: publish(store, other, artifact, "b", "x", RESULT)):
        with pytest.raises(RunError, match="belongs to another run") as caught:
            attempt()
        assert caught.value.reason == "OutputTaken"
    assert store.get_bytes(MANIFEST_FILE) == before


@pytest.mark.parametrize("at", ["adapter_model.safetensors", "README.md"])
def test_a_damaged_upload_leaves_no_manifest(tmp_path: Path, run: RunSpec, artifact: Path, at: str) -> None:
    store = FailingStore(tmp_path / "out", at)
    with pytest.raises(RunError, match="damaged"):
        publish(store, run, artifact, "aaaaaaaa", "adapter", RESULT)
    assert store.head(MANIFEST_FILE) is None


def test_something_else_in_the_manifests_place_is_an_error(run: RunSpec, store: FileStore) -> None:
    store.put_bytes(MANIFEST_FILE, b"{}")
    with pytest.raises(RunError, match="is no manifest"):
        existing_result(store, run)


def test_a_manifest_of_a_later_release_is_read_all_the_same(run: RunSpec, store: FileStore, artifact: Path) -> None:
    result = publish(store, run, artifact, "aaaaaaaa", "adapter", RESULT)
    manifest = json.loads(store.get_bytes(MANIFEST_FILE))
    for part in (manifest, manifest["files"][0], manifest["result"]):
        part["addedLater"] = 1
    store.put_bytes(MANIFEST_FILE, json.dumps(manifest).encode())
    again = existing_result(store, run)
    assert again is not None
    assert again.artifact is not None
    assert result.artifact is not None
    assert again.artifact.uri == result.artifact.uri
    assert again.metrics == RESULT.metrics


def test_what_prepare_has_told_already_is_in_the_manifest_and_not_in_the_result(
    run: RunSpec, store: FileStore, artifact: Path
) -> None:
    told = {"resolved": Resolved(parameters=7), "effective_hyperparameters": EffectiveHyperparameters(seed=1)}
    result = publish(store, run, artifact, "aaaaaaaa", "adapter", RESULT.model_copy(update=told))
    assert (result.resolved, result.effective_hyperparameters) == (None, None)
    assert existing_result(store, run) == result
    manifest = json.loads(store.get_bytes(MANIFEST_FILE))
    assert manifest["result"]["resolved"]["parameters"] == 7
    assert manifest["result"]["effectiveHyperparameters"] == {"seed": 1}
