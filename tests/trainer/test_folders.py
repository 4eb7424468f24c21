"""Which files a folder or a glob means."""

import pytest
from finetune_api.sources import Format, Role
from finetune_trainer.errors import RunError
from finetune_trainer.folders import files_of_folder, matching

HUB = ["README.md", ".gitattributes", "main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet"]
SAVED = ["dataset_info.json", "state.json", "data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
PARTS = ["dataset_dict.json", *[f"{part}/{name}" for part in ("train", "validation", "test") for name in SAVED]]


@pytest.mark.parametrize(
    ("names", "role", "expected"),
    [
        (["b.jsonl", "a.jsonl", "notes.md", "_SUCCESS", ".hidden.jsonl"], Role.TRAIN, ["a.jsonl", "b.jsonl"]),
        (["rows.jsonl.gz", "README.txt"], Role.TRAIN, ["rows.jsonl.gz"]),
        (["one.txt", "two.txt"], Role.TRAIN, ["one.txt", "two.txt"]),
        (HUB, Role.TRAIN, ["main/train-00000-of-00001.parquet"]),
        (HUB, Role.TEST, ["main/test-00000-of-00001.parquet"]),
        (SAVED, Role.TRAIN, SAVED[2:]),
        (PARTS, Role.TRAIN, [f"train/{name}" for name in SAVED[2:]]),
        (PARTS, Role.DEV, [f"validation/{name}" for name in SAVED[2:]]),
        (["train.jsonl", "test.jsonl"], Role.TRAIN, ["train.jsonl"]),
        (["test.jsonl"], Role.TRAIN, ["test.jsonl"]),
        (["data/only/rows.csv"], Role.TEST, ["data/only/rows.csv"]),
    ],
)
def test_a_folder_means_the_part_of_the_role_or_the_only_one(names: list[str], role: Role, expected: list[str]) -> None:
    assert files_of_folder(names, role, Format.AUTO, "dataset 'faq', s3://b/data") == expected


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["socratic/train.parquet", "main/train.parquet"], "parts 'main', 'socratic', and role train names none"),
        (["validation.jsonl", "test.jsonl"], "parts 'test', 'validation', and role train names none"),
        (["train.jsonl", "more.jsonl"], "parts and other files: 'more.jsonl', 'train.jsonl'"),
        (["a.jsonl", "b.csv"], "files of formats 'csv', 'jsonl'"),
        (["notes.md"], "holds no data file; it holds 'notes.md'"),
        ([], "holds no data file"),
    ],
)
def test_a_folder_that_could_mean_several_things_is_refused_with_the_names(names: list[str], words: str) -> None:
    with pytest.raises(RunError) as caught:
        files_of_folder(names, Role.TRAIN, Format.AUTO, "dataset 'faq', s3://b/data")
    assert words in caught.value.message
    assert caught.value.message.startswith("dataset 'faq', s3://b/data")
    assert "glob" in caught.value.remedy


def test_a_named_format_takes_its_own_files_alone() -> None:
    names = ["a.jsonl", "b.csv", "c.txt"]
    assert files_of_folder(names, Role.TRAIN, Format.CSV, "here") == ["b.csv"]
    assert files_of_folder(names, Role.TRAIN, Format.TEXT, "here") == ["c.txt"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["a.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "x/b.jsonl", "x/y/c.jsonl"]),
        ("x/*", ["x/b.jsonl"]),
        ("x/**", ["x/b.jsonl", "x/y/c.jsonl"]),
        ("?.jsonl", ["a.jsonl"]),
        ("[a].jsonl", []),
    ],
)
def test_a_star_stays_within_a_folder_and_two_do_not(pattern: str, expected: list[str]) -> None:
    assert matching(pattern, ["x/y/c.jsonl", "a.jsonl", "x/b.jsonl"]) == expected
