"""Where datasets come from: files, folders and globs on disk, in S3 and on the hub; and that they stay the same."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_api.run import RunSpec, StorageAccess
from finetune_api.sources import Dataset
from finetune_trainer.data_files import DataSource
from finetune_trainer.datasets import fetch_dataset, fetch_hub
from finetune_trainer.errors import RunError
from finetune_trainer.store import open_store

from tests.trainer.fake_hub import COMMIT, FakeHub, fake_hub
from tests.trainer.runs import a_run, some_pairs, write_jsonl
from tests.trainer.s3_access import an_access, make_bucket

LATER = "f" * 40


def fetched(
    tmp_path: Path, uri: str, known: str | None = None, spec: RunSpec | None = None, **fields: Any
) -> DataSource:
    dataset = {"name": "faq", "uri": uri, **fields}
    spec = spec or a_run(tmp_path, "hf://a/b", [dataset])
    return fetch_dataset(Dataset.model_validate(dataset), spec, tmp_path / "fetched", known)


def a_refusal(tmp_path: Path, uri: str, **given: Any) -> RunError:
    with pytest.raises(RunError) as caught:
        fetched(tmp_path, uri, **given)
    return caught.value


def a_folder(folder: Path) -> Path:
    """Two files of rows, one more in a folder, and what is no data."""
    write_jsonl(folder / "b.jsonl", some_pairs(2, "b"))
    write_jsonl(folder / "a.jsonl", some_pairs(3, "a"))
    write_jsonl(folder / "deeper" / "c.jsonl", some_pairs(1, "c"))
    (folder / "notes.md").write_text("no rows")
    return folder


def names(source: DataSource) -> list[str]:
    return [file.uri.rpartition("/")[2] for file in source.files]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a.jsonl", ["a.jsonl"]),
        ("/", ["a.jsonl", "b.jsonl"]),
        ("", ["a.jsonl", "b.jsonl"]),
        ("/*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("/**/*.jsonl", ["a.jsonl", "b.jsonl", "c.jsonl"]),
        ("/dee*/c.jsonl", ["c.jsonl"]),
    ],
)
def test_a_file_a_folder_or_a_glob_is_read_in_the_order_of_names(
    tmp_path: Path, path: str, expected: list[str]
) -> None:
    folder = a_folder(tmp_path / "data")
    source = fetched(tmp_path, f"file://{folder}{path}")
    assert names(source) == expected
    assert [file.path.read_bytes() for file in source.files[:1]] == [next(folder.rglob(expected[0])).read_bytes()]


def test_the_revision_of_several_files_is_a_digest_that_sha256sum_gives_too(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "data")
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in ("a.jsonl", "b.jsonl")]
    expected = "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()
    assert fetched(tmp_path, f"file://{folder}").revision == expected


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nope.jsonl", "the file is not there"),
        ("/*.csv", "0 files match"),
        ("/nope/", "the folder holds no data file"),
    ],
)
def test_what_is_not_there_is_told(tmp_path: Path, path: str, words: str) -> None:
    refusal = a_refusal(tmp_path, f"file://{a_folder(tmp_path / 'data')}{path}")
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "DatasetNotFound")
    assert words in refusal.message


def test_a_dataset_that_changed_since_it_was_first_read_is_refused_by_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", some_pairs(2))
    known = fetched(tmp_path, f"file://{path}").revision
    assert fetched(tmp_path, f"file://{path}", known).revision == known
    write_jsonl(path, some_pairs(3))
    refusal = a_refusal(tmp_path, f"file://{path}", known=known)
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "DatasetChanged")
    assert "dataset 'faq'" in refusal.message


@pytest.fixture
def access(s3: Any, tmp_path: Path) -> StorageAccess:
    found = an_access(tmp_path, s3)
    make_bucket(found, "datasets")
    return found


def test_folders_and_globs_in_s3_are_read_like_those_on_disk(access: StorageAccess, tmp_path: Path) -> None:
    root, folder = f"s3://datasets/{tmp_path.name}", a_folder(tmp_path / "data")
    store = open_store(root, access)
    for path in folder.rglob("*"):
        if path.is_file():
            store.put_file(f"data/{path.relative_to(folder)}", path)
    spec = a_run(tmp_path, "hf://a/b", [{"name": "faq", "uri": root}]).model_copy(update={"storage": access})
    for place, expected in [
        ("data/a.jsonl", ["a.jsonl"]),
        ("data/", ["a.jsonl", "b.jsonl"]),
        ("data", ["a.jsonl", "b.jsonl"]),
        ("data/**/*.jsonl", ["a.jsonl", "b.jsonl", "c.jsonl"]),
        ("da*/a.jsonl", ["a.jsonl"]),
    ]:
        source = fetched(tmp_path, f"{root}/{place}", spec=spec)
        assert names(source) == expected
        assert source.files[0].uri.startswith(f"{root}/")
    for place, words in [("nope", "the file is not there"), ("data/*.csv", "0 files match")]:
        assert words in a_refusal(tmp_path, f"{root}/{place}", spec=spec).message
    assert "the bucket is not there" in a_refusal(tmp_path, "s3://no-such-bucket-x/data/", spec=spec).message


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub() as server:
        folder = tmp_path / "served"
        for part, count in (("train", 3), ("test", 2)):
            write_jsonl(folder / "main" / f"{part}.jsonl", some_pairs(count, part))
        (folder / "README.md").write_text("# rows")
        server.datasets["org/rows"] = folder
        yield server


def from_hub(hub: FakeHub, tmp_path: Path, uri: str, known: str | None = None, **fields: Any) -> DataSource:
    dataset = Dataset.model_validate({"name": "faq", "uri": uri, **fields})
    return fetch_hub(dataset, None, tmp_path / "fetched", known, hub.endpoint)


@pytest.mark.parametrize(
    ("path", "role", "expected"),
    [
        ("", "train", "train.jsonl"),
        ("", "test", "test.jsonl"),
        ("/main/", "train", "train.jsonl"),
        ("/main/test.jsonl", "train", "test.jsonl"),
        ("/**/t*t.jsonl", "train", "test.jsonl"),
    ],
)
def test_a_dataset_of_the_hub_is_read_at_one_commit(
    hub: FakeHub, tmp_path: Path, path: str, role: str, expected: str
) -> None:
    source = from_hub(hub, tmp_path, f"hf://org/rows{path}", role=role)
    assert (names(source), source.revision) == ([expected], COMMIT)
    assert source.files[0].path.read_bytes() == (hub.datasets["org/rows"] / "main" / expected).read_bytes()
    assert any(f"/resolve/{COMMIT}/main/{expected}" in line for line in hub.requests)


def test_a_later_try_reads_the_commit_of_the_first(hub: FakeHub, tmp_path: Path) -> None:
    hub.commits["org/rows"] = LATER
    assert from_hub(hub, tmp_path, "hf://org/rows").revision == LATER
    assert from_hub(hub, tmp_path, "hf://org/rows", known=COMMIT).revision == COMMIT
    assert from_hub(hub, tmp_path, "hf://org/rows", revision=COMMIT).revision == COMMIT


@pytest.mark.parametrize(
    ("uri", "reason", "words"),
    [
        ("hf://org/nope", "DatasetNotFound", "dataset hf://org/nope is not on"),
        ("hf://org/rows/nope.jsonl", "DatasetNotFound", "the file is not there"),
    ],
)
def test_what_the_hub_does_not_have_is_told(hub: FakeHub, tmp_path: Path, uri: str, reason: str, words: str) -> None:
    with pytest.raises(RunError) as caught:
        from_hub(hub, tmp_path, uri)
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidData", reason)
    assert words in caught.value.message
    assert "datasets[].uri" in caught.value.remedy


def test_a_dataset_of_the_hub_needs_owner_and_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="hf://OWNER/NAME") as caught:
        fetch_hub(Dataset(name="faq", uri="hf://alone"), None, tmp_path, None)
    assert caught.value.reason == "DatasetNotFound"
