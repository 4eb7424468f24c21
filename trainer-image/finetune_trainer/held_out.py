"""A file of rows, read as one of a run's datasets: rendered and tokenised as prepare does it, all to be evaluated."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from finetune_api.names import FailureClass
from finetune_api.resource import Dataset, Format, Role
from finetune_api.run import RunSpec

from finetune_trainer.corpus import Corpus
from finetune_trainer.datasets import fetch_dataset
from finetune_trainer.errors import RunError, quoted
from finetune_trainer.prepared import Reference, TokenRows
from finetune_trainer.split import Part
from finetune_trainer.survey import EMPTY, Problems, survey
from finetune_trainer.tokens import RowTokenizer


@dataclass(frozen=True)
class HeldOut:
    """Rows to be evaluated."""

    rows: TokenRows
    references: list[Reference]
    """One for each row, in order."""


def held_out(spec: RunSpec, place: str, like: str | None, tokenizer: RowTokenizer, limit: int) -> HeldOut:
    """The rows of a file, read with type, columns and templates of the run's dataset `like`; of at most `limit` ids.

    `place` is an `s3://` or `file://` URI or a path. Raises RunError (InvalidData) for whatever is wrong with a row.
    """
    uri = place if "://" in place else f"file://{Path(place).absolute()}"
    changes = {"uri": uri, "format": Format.AUTO, "role": Role.TEST, "max_rows": None}
    dataset = dataset_like(spec, like).model_copy(update=changes)
    problems = Problems()
    file = fetch_dataset(dataset, spec.storage, Path(spec.scratch_directory) / "datasets")
    found = survey(file, spec.training, problems)
    if problems.total:
        raise problems.error("the file itself")
    corpus = Corpus(tokenizer, spec.training, limit)
    parts = [Part.DROPPED if digest == EMPTY else Part.TEST for digest in found.digests]
    corpus.add(file, np.array(parts, np.uint8))
    if corpus.refuses_lengths():
        raise corpus.lengths_error(limit)
    return HeldOut(corpus.parts[Part.TEST].build(), corpus.references["test"])


def dataset_like(spec: RunSpec, name: str | None) -> Dataset:
    """The run's dataset of that name; without one, its first train dataset."""
    datasets = spec.training.datasets
    for dataset in datasets:
        if dataset.name == name or (name is None and dataset.role is Role.TRAIN):
            return dataset
    message = f"--as {name} names none of the run's datasets {quoted([dataset.name for dataset in datasets])}"
    raise RunError(FailureClass.INVALID_CONFIG, "DatasetUnknown", message, "Name one of them.")
