"""A file of rows, read as one of a run's datasets: rendered and tokenised as prepare does it, all to be evaluated."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from finetune_api.names import FailureClass
from finetune_api.run import RunSpec
from finetune_api.sources import Dataset, Format, Role

from finetune_trainer.chat_template import ChatWriter
from finetune_trainer.corpus import Corpus
from finetune_trainer.datasets import fetch_dataset
from finetune_trainer.errors import RunError, quoted
from finetune_trainer.prepared import REFERENCES_FILE, TOKENS_FILE, Reference, References, TokenRows
from finetune_trainer.problems import Problems
from finetune_trainer.split import Part
from finetune_trainer.survey import EMPTY, survey
from finetune_trainer.token_file import read_token_file, write_token_file
from finetune_trainer.tokens import RowTokenizer

ANY_LENGTH = 2**31
"""No limit of the run's: what is only continued is limited by the model alone."""


@dataclass(frozen=True)
class HeldOut:
    """Rows to be evaluated."""

    rows: TokenRows
    references: list[Reference]
    """One for each row, in order."""
    empty: int
    """Rows left out, since they have no reference."""


def held_out(
    spec: RunSpec,
    place: str,
    like: str | None,
    tokenizer: RowTokenizer,
    limit: int | None,
    chat_writer: Callable[[], ChatWriter],
) -> HeldOut:
    """The rows of a file, read with type, columns and templates of the run's dataset `like`.

    With a `limit` they are measured: of at most so many ids, and without those that have an empty reference. Without
    one they are only continued, all of them.

    `place` is a dataset's URI or a path; `chat_writer` is asked for only where rows are chats. Raises RunError
    (InvalidData) for whatever is wrong with a row.
    """
    uri = place if "://" in place else f"file://{Path(place).absolute()}"
    changes = {"uri": uri, "format": Format.AUTO, "role": Role.TEST, "max_rows": None}
    dataset = dataset_like(spec, like).model_copy(update=changes)
    problems, scratch = Problems(), Path(spec.scratch_directory)
    found = survey(fetch_dataset(dataset, spec, scratch / "datasets"), spec.training, problems)
    chats = chat_writer() if found.has_chats else None
    folder = scratch / "held-out"
    empty = (found.digests == EMPTY) & (limit is not None)
    with closing(Corpus(tokenizer, spec.training, limit or ANY_LENGTH, folder, chats)) as corpus:
        if not problems.total:
            corpus.add(found, np.where(empty, Part.EMPTY, Part.TEST).astype(np.uint8))
    for wrong in (problems, corpus.problems):
        if wrong.total:
            raise wrong.error("the file itself")
    if corpus.refused.total:
        raise corpus.lengths_error(limit)
    write_token_file(folder / TOKENS_FILE, {"test": corpus.parts[Part.TEST]})
    rows = TokenRows.of(read_token_file(folder / TOKENS_FILE), "test")
    return HeldOut(rows, list(References(folder / REFERENCES_FILE, "test")), int(empty.sum()))


def dataset_like(spec: RunSpec, name: str | None) -> Dataset:
    """The run's dataset of that name; without one, its first train dataset."""
    datasets = spec.training.datasets
    for dataset in datasets:
        if dataset.name == name or (name is None and dataset.role is Role.TRAIN):
            return dataset
    message = f"--as {name} names none of the run's datasets {quoted([dataset.name for dataset in datasets])}"
    raise RunError(FailureClass.INVALID_CONFIG, "DatasetUnknown", message, "Name one of them.")
