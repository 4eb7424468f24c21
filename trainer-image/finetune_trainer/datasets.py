"""The datasets of a run: brought to the disk, read once, and divided into train, dev and test."""

from pathlib import Path

import numpy as np
from finetune_api.names import FailureClass
from finetune_api.resource import Dataset, Format, Role, Split, TrainingSpec
from finetune_api.run import StorageAccess
from finetune_api.status import DroppedCounts

from finetune_trainer.errors import RunError
from finetune_trainer.rows import SUFFIXES, detect_format
from finetune_trainer.split import Part, Parts, assign_parts
from finetune_trainer.store import NotFoundError, open_store, sha256_of, split_uri
from finetune_trainer.survey import EMPTY, DataFile, Survey

WHOLE_PARTS = {Role.DEV: Part.DEV, Role.TEST: Part.TEST}
"""Where all rows of a dataset with such a role go."""


def fetch_dataset(dataset: Dataset, access: StorageAccess, folder: Path) -> DataFile:
    """Bring one file to `folder`. Raises RunError (InvalidData) where it is not there or of no known format."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / dataset.name
    parent, name = split_uri(dataset.uri)
    where = f"dataset '{dataset.name}', {dataset.uri}"
    try:
        open_store(parent, access).get_file(name, path)
    except NotFoundError as error:
        what = "the bucket is not there" if error.bucket_missing else "the file is not there"
        remedy = "Correct datasets[].uri, or upload the file."
        raise RunError(FailureClass.INVALID_DATA, "DatasetNotFound", f"{where}: {what}", remedy) from error
    return DataFile(dataset, path, _format(dataset, name, path, where), sha256_of(path))


def _format(dataset: Dataset, name: str, path: Path, where: str) -> Format:
    if dataset.format is not Format.AUTO:
        return dataset.format
    # What is empty has no format, and another message.
    found = detect_format(name, path) if path.stat().st_size else Format.JSONL
    if found is None:
        raise RunError(
            FailureClass.INVALID_DATA,
            "FormatUnknown",
            f"{where}: neither the name nor the first character tells the format",
            f"Set datasets[].format to jsonl, json or csv, or use a known suffix ({', '.join(SUFFIXES)}).",
        )
    return found


def split_rows(surveys: list[Survey], training: TrainingSpec) -> tuple[list[Parts], DroppedCounts]:
    """For each dataset the Part of each row, and how many were dropped as empty or duplicate.

    Raises RunError (InvalidConfig, EmptySplit) where no row at all would be trained, or evaluated though asked for.
    """
    parts = [_parts(survey, training.split) for survey in surveys]
    _check_split(parts, training.split)
    empty = sum(
        _drop(part, np.array([mark == EMPTY for mark in of.digests])) for part, of in zip(parts, surveys, strict=True)
    )
    return parts, DroppedCounts(empty=empty, duplicate=_drop_duplicates(parts, surveys))


def count(parts: list[Parts], wanted: Part) -> int:
    """Rows of a part over all datasets."""
    return sum(int(np.count_nonzero(part == wanted)) for part in parts)


def _parts(survey: Survey, split: Split) -> Parts:
    dataset = survey.file.dataset
    if dataset.role in WHOLE_PARTS:
        return np.full(survey.rows, WHOLE_PARTS[dataset.role], np.uint8)
    return assign_parts(survey.rows, dataset.name, split)


def _check_split(parts: list[Parts], split: Split) -> None:
    rows = sum(len(part) for part in parts)
    wanted = [("train", Part.TRAIN)] + ([("dev", Part.DEV)] if split.dev_percentage > 0 else [])
    for name, part in wanted:
        if not count(parts, part):
            raise RunError(
                FailureClass.INVALID_CONFIG,
                "EmptySplit",
                f"the split leaves no {name} row: {rows} rows, split.trainPercentage {split.train_percentage:g}, "
                f"devPercentage {split.dev_percentage:g}",
                f"Raise split.{name}Percentage, or give more rows.",
            )


def _drop(parts: Parts, which: "np.typing.NDArray[np.bool_]") -> int:
    """Mark the rows `which`, unused ones excepted, as dropped; says how many there were."""
    dropped = which & (parts > Part.DROPPED)
    parts[dropped] = Part.DROPPED
    return int(np.count_nonzero(dropped))


def _drop_duplicates(parts: list[Parts], surveys: list[Survey]) -> int:
    """Drop train rows that repeat a dev or test row; repeats within train stay."""
    held_out = {
        of.digests[number]
        for part, of in zip(parts, surveys, strict=True)
        for number in np.flatnonzero(part > Part.TRAIN)
    }
    if not held_out:
        return 0
    return sum(
        _drop(part, (part == Part.TRAIN) & np.array([mark in held_out for mark in of.digests]))
        for part, of in zip(parts, surveys, strict=True)
    )
