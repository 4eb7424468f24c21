"""The second reading: the rows that are kept, tokenised in batches, into the parts of the split."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from finetune_api.names import FailureClass
from finetune_api.resource import Hyperparameters, Overlong, TrainingSpec

from finetune_trainer.errors import RunError
from finetune_trainer.prepared import Flags, Ids, Reference, TokenRows
from finetune_trainer.split import KEPT_PARTS, Part, Parts
from finetune_trainer.survey import DataFile, DatasetReader, Problem, Problems, RenderedRow
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
        self.parts = {part: RowsBuilder() for part in KEPT_PARTS}
        self.references: dict[str, list[Reference]] = {"dev": [], "test": []}
        self.overlong = Problems()
        self.longest = 0
        self.longest_at = ""
        self.dropped = 0
        self.truncated = 0
        self.samples: list[Sample] = []

    @property
    def given(self) -> Hyperparameters:
        """The user's numbers."""
        return self.training.hyperparameters

    def add(self, file: DataFile, parts: Parts) -> None:
        """Tokenise the rows of one dataset that `parts`, by row number, keeps."""
        for rows in _batches(_kept(DatasetReader(file, self.training).rows(), parts)):
            encoded = self.tokenizer.encode([(row.prompt, row.completion) for row in rows])
            for row, tokens in zip(rows, encoded, strict=True):
                self._add_row(file, row, tokens, Part(int(parts[row.number])))

    def _add_row(self, file: DataFile, row: RenderedRow, tokens: TokenRow, part: Part) -> None:
        kept = fitted(tokens, self.limit, self.given.overlong)
        if len(tokens.ids) > self.limit:
            self._note_overlong(file, row, len(tokens.ids))
            self.truncated += kept is not None
        if kept is None:
            self.dropped += 1
            return
        self.parts[part].add(kept, self.given.train_on_prompt)
        if part is not Part.TRAIN:
            self.references[part.name.lower()].append(_reference(file, row, kept))
        elif len(self.samples) < SAMPLES:
            self.samples.append(Sample(file.dataset.name, row.number, row.prompt, row.completion))

    def _note_overlong(self, file: DataFile, row: RenderedRow, tokens: int) -> None:
        dataset = file.dataset
        message = f"the row has {tokens} tokens, above hyperparameters.maxSeqLength {self.limit}"
        self.overlong.add(Problem(dataset.name, dataset.uri, row.line, None, message))
        if tokens > self.longest:
            self.longest, self.longest_at = tokens, f"{file.where}, line {row.line}"

    def refuses_lengths(self) -> bool:
        """Whether a row is too long and `overlong: error` forbids it."""
        return self.given.overlong is Overlong.ERROR and self.overlong.total > 0

    def lengths_error(self, position_limit: int | None) -> RunError:
        """How many rows are too long, which is the longest, and the limit that would fit all."""
        return RunError(
            FailureClass.INVALID_DATA,
            "RowsOverlong",
            f"{self.overlong.total} rows are longer than hyperparameters.maxSeqLength {self.limit}; the longest is "
            f"{self.longest_at} with {self.longest} tokens",
            overlong_remedy(self.longest, position_limit),
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
        line=row.line,
        prompt=row.prompt,
        completion=row.completion,
        prompt_ids=tokens.ids[: tokens.prompt].tolist(),
    )


def _kept(rows: Iterable[RenderedRow | Problem], parts: Parts) -> Iterator[RenderedRow]:
    for row in rows:
        if isinstance(row, Problem):
            # The first reading found none, so the file was changed in between.
            raise RunError(FailureClass.INVALID_DATA, "RowInvalid", str(row))
        if parts[row.number] in KEPT_PARTS:
            yield row


def _batches(rows: Iterator[RenderedRow]) -> Iterator[list[RenderedRow]]:
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch
