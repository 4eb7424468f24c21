"""The second reading: the rows that are kept, tokenised in batches, into the parts of the split, on the disk.

Nothing of a row stays in memory but where it lies in the file.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from finetune_api.names import FailureClass
from finetune_api.resource import TrainingSpec
from finetune_api.training import Hyperparameters, Overlong

from finetune_trainer.chat_template import ChatWriter
from finetune_trainer.data_files import DataSource
from finetune_trainer.errors import RowError, RunError
from finetune_trainer.prepared import Reference, ReferenceWriter
from finetune_trainer.problems import Problem, Problems
from finetune_trainer.reader import DatasetReader, ReadRow
from finetune_trainer.split import KEPT_PARTS, Part, Parts
from finetune_trainer.survey import Survey
from finetune_trainer.texts import Text, TokenRow, can_be_cut, fitted, pair_text
from finetune_trainer.token_file import PartWriter
from finetune_trainer.tokens import RowTokenizer

BATCH_ROWS = 2048
"""Rows tokenised by one call: enough to keep every core busy, few enough to stream."""

BATCH_CHARACTERS = 1_000_000
"""Fewer rows where they are long."""

SAMPLES = 3
"""Rendered rows shown in the data report."""

Batch = list[tuple[ReadRow, list[Text]]]


@dataclass(frozen=True)
class SamplePiece:
    """A part of a row, learned as a whole or not at all."""

    text: str
    learned: bool


@dataclass(frozen=True)
class Sample:
    """A train row as the model sees it, for people."""

    dataset: str
    row: int
    pieces: list[SamplePiece]


class Corpus:
    """Collects the tokenised rows of all datasets in files below a folder."""

    def __init__(
        self, tokenizer: RowTokenizer, training: TrainingSpec, limit: int, folder: Path, chats: ChatWriter | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.training = training
        self.limit = limit
        self.chats = chats
        self.parts = {part: PartWriter(folder, part.name.lower()) for part in KEPT_PARTS}
        self.references = ReferenceWriter(folder)
        self.rows: Counter[Part] = Counter()
        """Rows as read, of which something is kept."""
        self.problems = Problems()
        """Chats that the template refuses."""
        self.refused = Problems()
        """Rows that are too long and that `overlong` does not help."""
        self.longest = 0
        self.longest_at = ""
        self.dropped = self.truncated = self.cut = 0
        self.samples: list[Sample] = []

    @property
    def given(self) -> Hyperparameters:
        """The user's numbers."""
        return self.training.hyperparameters

    def add(self, found: Survey, parts: Parts) -> None:
        """Tokenise the rows of one dataset that `parts`, by row number, keeps."""
        rows = self._kept(DatasetReader(found.source, self.training).rows(), found, parts)
        for batch in _batches(self._written(found.source, rows)):
            encoded = iter(self.tokenizer.encode([text for _, texts in batch for text in texts]))
            for row, texts in batch:
                tokens = [next(encoded) for _ in texts]
                self._add_row(found, row, texts, tokens, Part(int(parts[row.number])))

    def close(self) -> None:
        """Everything is in the files then."""
        self.references.close()
        for writer in self.parts.values():
            writer.close()

    def _kept(self, rows: Iterable[ReadRow | Problem], found: Survey, parts: Parts) -> Iterator[ReadRow]:
        for row in rows:
            if isinstance(row, Problem):
                # The first reading found none, so the file was changed in between.
                raise RunError(FailureClass.INVALID_DATA, "RowInvalid", str(row))
            if parts[row.number] == Part.DUPLICATE:
                found.notes.add("duplicate", row.file, row.line)
            if parts[row.number] in KEPT_PARTS:
                yield row

    def _written(self, source: DataSource, rows: Iterable[ReadRow]) -> Iterator[tuple[ReadRow, list[Text]]]:
        for row in rows:
            chat = row.said.chat
            if chat is None or self.chats is None:
                yield row, [pair_text(row.said.prompt, row.said.completion)]
                continue
            try:
                yield row, self.chats.texts(chat)
            except RowError as error:
                self.problems.add(Problem(source.dataset.name, row.file, row.line, error.column, error.message))

    def _add_row(self, found: Survey, row: ReadRow, texts: list[Text], tokens: list[TokenRow], part: Part) -> None:
        pieces = [self._fitted(found, row, text, ids) for text, ids in zip(texts, tokens, strict=True)]
        kept = [piece for some in pieces for piece in some]
        if not kept:
            self.dropped += 1
            return
        self.rows[part] += 1
        for piece in kept:
            self.parts[part].add(piece.ids, piece.supervised(self.given.train_on_prompt))
        if part is not Part.TRAIN:
            self.references.add(part.name.lower(), self._reference(found, row, texts[-1], tokens[-1], pieces[-1]))
        elif len(self.samples) < SAMPLES:
            self.samples.append(self._sample(found, row, kept[0]))

    def _fitted(self, found: Survey, row: ReadRow, text: Text, tokens: TokenRow) -> list[TokenRow]:
        length, overlong = len(tokens.ids), self.given.overlong
        kept = fitted(tokens, self.limit, overlong, text)
        if length > self.limit:
            found.notes.add("overlong", row.file, row.line)
            if overlong is Overlong.ERROR or (overlong is Overlong.SPLIT and not can_be_cut(text)):
                self._refuse(found, row, length)
            self.truncated += bool(kept) and overlong is Overlong.TRUNCATE
            self.cut += bool(kept) and overlong is Overlong.SPLIT
        return kept

    def _refuse(self, found: Survey, row: ReadRow, tokens: int) -> None:
        message = f"the row has {tokens} tokens, above hyperparameters.maxSeqLength {self.limit}"
        name = found.source.dataset.name
        self.refused.add(Problem(name, row.file, row.line, None, message))
        if tokens > self.longest:
            self.longest, self.longest_at = tokens, f"dataset '{name}', {row.file.place(row.line)}"

    def _reference(self, found: Survey, row: ReadRow, text: Text, tokens: TokenRow, kept: list[TokenRow]) -> Reference:
        """The prompt of the last answer as it is kept; a text without prompt, cut or not, has none."""
        shown = kept[0] if kept else tokens
        *before, last = text.pieces
        return Reference(
            dataset=found.source.dataset.name,
            row=row.number,
            line=row.line,
            prompt="".join(piece.text for piece in before),
            completion=last.text.removesuffix(text.end),
            prompt_ids=shown.ids[: shown.prompt].tolist(),
        )

    def _sample(self, found: Survey, row: ReadRow, tokens: TokenRow) -> Sample:
        """Read back from the ids, so that it shows what is learned and not what was meant."""
        flags = tokens.supervised(self.given.train_on_prompt)
        borders = [0, *(np.flatnonzero(flags[1:] != flags[:-1]) + 1).tolist(), len(flags)]
        pieces = [
            SamplePiece(self._decoded(tokens.ids[start:end].tolist()), bool(flags[start]))
            for start, end in pairwise(borders)
        ]
        return Sample(found.source.dataset.name, row.number, pieces)

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer.tokenizer.decode(ids, skip_special_tokens=False))

    def lengths_error(self, position_limit: int | None) -> RunError:
        """How many rows are refused as too long, which is the longest, and the limit that would fit all."""
        splitting = self.given.overlong is Overlong.SPLIT
        kind = "rows with a prompt, which overlong: split does not cut," if splitting else "rows"
        return RunError(
            FailureClass.INVALID_DATA,
            "RowsOverlong",
            f"{self.refused.total} {kind} are longer than hyperparameters.maxSeqLength {self.limit}; the longest is "
            f"{self.longest_at} with {self.longest} tokens",
            overlong_remedy(self.longest, position_limit),
        )


def overlong_remedy(tokens: int, position_limit: int | None) -> str:
    """What to do about rows of up to `tokens` tokens."""
    if position_limit is not None and tokens > position_limit:
        return f"The model's limit is {position_limit}: set hyperparameters.overlong to drop or truncate."
    return f"Set hyperparameters.maxSeqLength to {tokens}, which fits all rows, or overlong to drop or truncate."


def _batches(rows: Iterator[tuple[ReadRow, list[Text]]]) -> Iterator[Batch]:
    batch: Batch = []
    characters = 0
    for row, texts in rows:
        batch.append((row, texts))
        characters += sum(len(piece.text) for text in texts for piece in text.pieces)
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
