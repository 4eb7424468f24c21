"""Publishing to a real S3: conditional writes decide between twins, checksums are the server's."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from finetune_api.names import ARTIFACTS_FOLDER, MANIFEST_FILE, FailureClass, Stage
from finetune_api.progress import Metrics
from finetune_api.run import RunResult, RunSpec
from finetune_trainer.errors import RunError
from finetune_trainer.publish import existing_result, publish
from finetune_trainer.store import Store, open_store

from tests.trainer.runs import a_run, an_artifact
from tests.trainer.s3_access import an_access, make_bucket

WRITERS = [f"{number}-writer" for number in range(6)]


@pytest.fixture
def store(s3: Any, tmp_path: Path) -> Store:
    """An empty prefix of a bucket."""
    access = an_access(tmp_path, s3)
    return open_store(f"s3://{make_bucket(access, 'publish')}/{tmp_path.name}/run", access)


@pytest.fixture
def run(tmp_path: Path) -> RunSpec:
    return a_run(tmp_path, "hf://a/b", [{"name": "d", "uri": "s3://b/d.jsonl"}])


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return an_artifact(tmp_path)


def a_result(loss: float) -> RunResult:
    return RunResult(stage=Stage.TRAIN, metrics=Metrics(training_loss=loss))


def test_of_many_twins_one_publishes_and_all_return_its_result(store: Store, run: RunSpec, artifact: Path) -> None:
    def one(number: int) -> RunResult:
        return publish(store, run, artifact, WRITERS[number], "adapter", a_result(float(number)))

    with ThreadPoolExecutor(len(WRITERS)) as pool:
        results = list(pool.map(one, range(len(WRITERS))))
    assert all(result == results[0] for result in results)
    assert existing_result(store, run) == results[0]


def test_what_is_uploaded_lies_below_the_writers_folder_and_the_manifest_alone_outside(
    store: Store, run: RunSpec, artifact: Path
) -> None:
    publish(store, run, artifact, "0123456789", "adapter", a_result(1.0))
    keys = [item.key for item in store.list()]
    folder = f"{ARTIFACTS_FOLDER}/1-01234567"
    assert keys == [f"{folder}/README.md", f"{folder}/adapter_model.safetensors", MANIFEST_FILE]


def test_a_server_that_goes_away_in_the_middle_leaves_no_manifest(
    store: Store, run: RunSpec, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store.put_file

    def put_file(key: str, path: Path) -> None:
        if key.endswith("safetensors"):
            raise RunError(FailureClass.INFRASTRUCTURE, "StorageUnavailable", "S3 does not answer")
        whole(key, path)

    monkeypatch.setattr(store, "put_file", put_file)
    with pytest.raises(RunError):
        publish(store, run, artifact, "0123456789", "adapter", a_result(1.0))
    assert store.head(MANIFEST_FILE) is None
