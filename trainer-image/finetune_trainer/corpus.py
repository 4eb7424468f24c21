"""The second reading: the rows that are kept, tokenised in batches, into the parts of the split."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from finetune_api.names import FailureClass
from finetune_api.resource import Hyperparameters, Overlong, TrainingSpec

from finetune_trainer.errors import RunError
from finetune_trainer.prepared import Flags, Ids, Reference, TokenRows
from finetune_trainer.split import Part, Parts
from finetune_trainer.survey import DataFile, DatasetReader, Problem, RenderedRow
from finetune_trainer.tokens import RowTokenizer, TokenRow, fitted

BATCH_ROWS = 2048
"""Rows tokenised by one call: enough to keep every core busy, few enough to stream."""

SAMPLES = 3
"""Rendered rows shown in the data report."""


@dataclass
class RowsBuilder:
    """Token rows of one part, as they come."""

    ids: list[Ids] = field(default_factory=list)
    supervised: list[Flags] = field(default_factory=list)

    def add(self, row: TokenRow, train_on_prompt: bool) -> None:
        """Append one row."""
        self.ids.append(row.ids)
        self.supervised.append(row.supervised(train_on_prompt))

    def build(self) -> TokenRows:
        """All rows end to end."""
        if not self.ids:
            return TokenRows.none()
        offsets = np.zeros(len(self.ids) + 1, np.int64)
        np.cumsum([len(row) for row in self.ids], out=offsets[1:])
        return TokenRows(np.concatenate(self.ids), np.concatenate(self.supervised), offsets)


@dataclass
class Longest:
    """Rows above the limit, and the longest of them."""

    count: int = 0
    tokens: int = 0
    where: str = ""

    def add(self, tokens: int, where: str) -> None:
        """Count one more."""
        self.count += 1
        if tokens > self.tokens:
            self.tokens, self.where = tokens, where


@dataclass(frozen=True)
class Sample:
    """A rendered train row, for people."""

    dataset: str
    row: int
    prompt: str
    completion: str


class Corpus:
    """Collects the tokenised rows of all datasets."""

    def __init__(self, tokenizer: RowTokenizer, training: TrainingSpec, limit: int) -> None:
        self.tokenizer = tokenizer
        self.training = training
        self.limit = limit
        self.parts = {part: RowsBuilder() for part in (Part.TRAIN, Part.DEV, Part.TEST)}
        self.references: dict[str, list[Reference]] = {"dev": [], "test": []}
        self.overlong = Longest()
        self.dropped = 0
        self.truncated = 0
        self.samples: list[Sample] = []

    @property
    def given(self) -> Hyperparameters:
        """The user's numbers."""
        return self.training.hyperparameters

    def add(self, file: DataFile, parts: Parts) -> None:
        """Tokenise the rows of one dataset whose part, by row number, is not UNUSED."""
        for rows in _batches(_kept(DatasetReader(file, self.training).rows(), parts)):
            encoded = self.tokenizer.encode([(row.prompt, row.completion) for row in rows])
            for row, tokens in zip(rows, encoded, strict=True):
                self._add_row(file, row, tokens, Part(int(parts[row.number])))

    def _add_row(self, file: DataFile, row: RenderedRow, tokens: TokenRow, part: Part) -> None:
        kept = fitted(tokens, self.limit, self.given.overlong)
        if len(tokens.ids) > self.limit:
            self.overlong.add(len(tokens.ids), f"{file.where}, line {row.line}")
            self.truncated += kept is not None
        if kept is None:
            self.dropped += 1
            return
        self.parts[part].add(kept, self.given.train_on_prompt)
        if part is not Part.TRAIN:
            self.references[part.name.lower()].append(_reference(file, row, kept))
        elif len(self.samples) < SAMPLES:
            self.samples.append(Sample(file.dataset.name, row.number, row.prompt, row.completion))

    def check_lengths(self, position_limit: int | None) -> None:
        """With `overlong: error`, raise RunError (InvalidData) where a row is too long."""
        if self.given.overlong is not Overlong.ERROR or not self.overlong.count:
            return
        raise RunError(
            FailureClass.INVALID_DATA,
            "RowsOverlong",
            f"{self.overlong.count} rows are longer than hyperparameters.maxSeqLength {self.limit}; the longest is "
            f"{self.overlong.where} with {self.overlong.tokens} tokens",
            overlong_remedy(self.overlong.tokens, position_limit),
        )


def overlong_remedy(tokens: int, position_limit: int | None) -> str:
    """What to do about rows of up to `tokens` tokens."""
    if position_limit is not None and tokens > position_limit:
        return f"The model's limit is {position_limit}: set hyperparameters.overlong to drop or truncate."
    return f"Set hyperparameters.maxSeqLength to {tokens}, which fits all rows, or overlong to drop or truncate."


def _reference(file: DataFile, row: RenderedRow, tokens: TokenRow) -> Reference:
    return Reference(
        dataset=file.dataset.name,
        row=row.number,
        prompt=row.prompt,
        completion=row.completion,
        prompt_ids=tokens.ids[: tokens.prompt].tolist(),
    )


def _kept(rows: Iterable[RenderedRow | Problem], parts: Parts) -> Iterator[RenderedRow]:
    for row in rows:
        if isinstance(row, Problem):
            # The first reading found none, so the file was changed in between.
            raise RunError(FailureClass.INVALID_DATA, "RowInvalid", str(row))
        if parts[row.number] != Part.UNUSED:
            yield row


def _batches(rows: Iterator[RenderedRow]) -> Iterator[list[RenderedRow]]:
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch
