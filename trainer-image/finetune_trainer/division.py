"""The rows of all datasets, divided: into train, dev and test, and what is left out of them as empty or repeated."""

import numpy as np
import numpy.typing as npt
from finetune_api.names import FailureClass
from finetune_api.resource import TrainingSpec
from finetune_api.sources import Role, Split

from finetune_trainer.errors import RunError
from finetune_trainer.split import Mask, Part, Parts, assign_parts
from finetune_trainer.survey import EMPTY, Digests, Survey

WHOLE_PARTS = {Role.DEV: Part.DEV, Role.TEST: Part.TEST}
"""Where all rows of a dataset with such a role go."""

CHUNK_ROWS = 1_000_000
"""Rows looked up at once."""


def divide(surveys: list[Survey], training: TrainingSpec) -> list[Parts]:
    """For each dataset the Part of each row.

    Raises RunError (InvalidConfig, EmptySplit) where no row at all would be trained, or evaluated though asked for.
    """
    parts = [_parts(survey, training.split) for survey in surveys]
    _check_split(parts, training.split)
    for part, of in zip(parts, surveys, strict=True):
        part[(of.digests == EMPTY) & (part != Part.UNUSED)] = Part.EMPTY
    _drop_leaks(parts, surveys)
    return parts


def count(parts: list[Parts], wanted: Part) -> int:
    """Rows of a part over all datasets."""
    return sum(int(np.count_nonzero(part == wanted)) for part in parts)


def repeats(surveys: list[Survey], parts: list[Parts]) -> int:
    """Train rows that say what an earlier train row says; they are kept."""
    train = np.concatenate([of.digests[part == Part.TRAIN] for part, of in zip(parts, surveys, strict=True)])
    train.sort()
    return int(np.count_nonzero(train[1:] == train[:-1]))


def _parts(survey: Survey, split: Split) -> Parts:
    dataset = survey.source.dataset
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


def _drop_leaks(parts: list[Parts], surveys: list[Survey]) -> None:
    """Drop train rows that repeat a dev or test row; repeats within train stay."""
    held_out = np.unique(
        np.concatenate([of.digests[part > Part.TRAIN] for part, of in zip(parts, surveys, strict=True)])
    )
    if len(held_out):
        for part, of in zip(parts, surveys, strict=True):
            part[(part == Part.TRAIN) & _is_in(of.digests, held_out)] = Part.DUPLICATE


def _is_in(digests: Digests, sorted_digests: Digests) -> Mask:
    """(rows,) which digests are there. `np.isin` would copy and sort both."""
    found: npt.NDArray[np.bool_] = np.zeros(len(digests), np.bool_)
    for start in range(0, len(digests), CHUNK_ROWS):
        chunk = digests[start : start + CHUNK_ROWS]
        places = np.searchsorted(sorted_digests, chunk).clip(max=len(sorted_digests) - 1)
        found[start : start + CHUNK_ROWS] = sorted_digests[places] == chunk
    return found
