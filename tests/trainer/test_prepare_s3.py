"""Prepare against a real S3: the straight way, and what a user gets wrong about S3."""

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.run import RunSpec, StorageAccess
from finetune_trainer.__main__ import main
from finetune_trainer.prepared import read_prepared
from finetune_trainer.store import open_store

from tests.trainer.runs import some_pairs, write_jsonl
from tests.trainer.s3_access import an_access, make_bucket
from tests.trainer.tiny import a_model_folder


@pytest.fixture
def access(s3: Any, tmp_path: Path) -> StorageAccess:
    """S3 with a bucket that holds a model and rows, below the test's own prefix."""
    found = an_access(tmp_path, s3)
    store = open_store(f"s3://{make_bucket(found, 'prepare')}/{tmp_path.name}", found)
    model = a_model_folder(tmp_path / "model", weights=False)
    (model / "model.safetensors").write_bytes(b"never read by prepare")
    for path in model.iterdir():
        store.put_file(f"model/{path.name}", path)
    store.put_file("rows.jsonl", write_jsonl(tmp_path / "rows.jsonl", some_pairs(5)))
    return found


def a_stored_run(tmp_path: Path, access: StorageAccess, rows: str = "rows.jsonl", model: str = "model") -> RunSpec:
    root = f"s3://prepare/{tmp_path.name}"
    return RunSpec.model_validate(
        {
            "identity": {"namespace": "team-a", "name": "story", "uid": "9f3c2a10"},
            "training": {
                "model": {"uri": f"{root}/{model}"},
                "datasets": [{"name": "faq", "uri": f"{root}/{rows}" if "://" not in rows else rows}],
                "output": {"uri": "s3://prepare/out"},
            },
            "outputUri": f"{root}/run",
            "storage": access.to_json(),
            "scratchDirectory": str(tmp_path / "scratch"),
            "resultFile": str(tmp_path / "result.json"),
        }
    )


def run_command(tmp_path: Path, spec: RunSpec) -> tuple[int, dict[str, Any]]:
    (tmp_path / "run.json").write_text(spec.model_dump_json(by_alias=True, exclude_none=True))
    code = main(["prepare", "--run", str(tmp_path / "run.json")])
    return code, json.loads((tmp_path / "result.json").read_text())


def test_model_and_rows_come_from_s3_and_the_prepared_data_goes_there(access: StorageAccess, tmp_path: Path) -> None:
    spec = a_stored_run(tmp_path, access)
    code, result = run_command(tmp_path, spec)
    assert code == 0
    assert result["data"]["rows"]["train"] == 5
    assert result["resolved"]["modelRevision"].startswith("sha256:")
    store = open_store(spec.output_uri, access)
    assert len(read_prepared(store, tmp_path).train) == 5
    assert [item.key for item in store.list()] == [
        "prepared/index.json",
        "prepared/references.jsonl",
        "prepared/report.json",
        "prepared/tokens.safetensors",
    ]


@pytest.mark.parametrize(
    ("rows", "words"),
    [("nope.jsonl", "nope.jsonl: the file is not there"), ("s3://no-such-bucket-x/a.jsonl", "the bucket is not there")],
)
def test_a_missing_file_is_told_from_a_missing_bucket(
    access: StorageAccess, tmp_path: Path, rows: str, words: str
) -> None:
    code, result = run_command(tmp_path, a_stored_run(tmp_path, access, rows=rows))
    assert code == 42
    assert (result["failure"]["class"], result["failure"]["reason"]) == ("InvalidData", "DatasetNotFound")
    assert words in result["failure"]["message"]


def test_a_missing_base_model_is_told(access: StorageAccess, tmp_path: Path) -> None:
    code, result = run_command(tmp_path, a_stored_run(tmp_path, access, model="nope"))
    assert code == 42
    assert (result["failure"]["class"], result["failure"]["reason"]) == ("InvalidConfig", "ModelNotFound")


def test_wrong_keys_are_access_denied_and_name_the_secret(access: StorageAccess, tmp_path: Path, s3: Any) -> None:
    wrong = an_access(tmp_path / "wrong", s3, "not-the-secret-key")
    code, result = run_command(tmp_path, a_stored_run(tmp_path, wrong))
    assert code == 42
    assert result["failure"]["class"] == "AccessDenied"
    assert "was denied: SignatureDoesNotMatch" in result["failure"]["message"]
    assert "Secret team-a/s3" in result["failure"]["remedy"]
    assert "not-the-secret-key" not in json.dumps(result)


def test_an_s3_that_does_not_answer_is_infrastructure(access: StorageAccess, tmp_path: Path) -> None:
    closed = access.model_copy(update={"endpoint": "http://127.0.0.1:9"})
    code, result = run_command(tmp_path, a_stored_run(tmp_path, closed))
    assert code == 43
    assert result["failure"]["class"] == "Infrastructure"
    assert "S3 at http://127.0.0.1:9 does not answer" in result["failure"]["message"]
