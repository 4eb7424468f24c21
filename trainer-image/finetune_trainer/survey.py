"""The first reading of a dataset: every row parsed and rendered, none kept.

It finds all problems, counts the rows the split is made of, and takes a digest of each, so that the second reading,
which tokenises, can stream. Eight bytes are kept for a row.
"""

from array import array
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from finetune_api.names import FailureClass
from finetune_api.resource import TrainingSpec

from finetune_trainer.data_files import DataSource
from finetune_trainer.errors import RunError
from finetune_trainer.pairs import Said
from finetune_trainer.problems import Notes, Problem, Problems
from finetune_trainer.reader import DatasetReader, ReadRow
from finetune_trainer.row_types import template_warnings

EMPTY = 0
"""Stands for the digest of a row with an empty completion."""

Digests = npt.NDArray[np.uint64]
"""One per row. Of 10 million rows, the chance that any two different ones share a digest is 3 in a million."""


@dataclass
class Survey:
    """What the first reading of one dataset found."""

    source: DataSource
    marks: "array[int]" = field(default_factory=lambda: array("Q"))
    """For each row a digest of what it says, or EMPTY. An array of this kind grows in place."""
    notes: Notes = field(default_factory=Notes)
    warnings: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    extra_columns: list[str] = field(default_factory=list)
    joined: int = 0
    """Rows whose prompt and completion meet letter to letter."""
    has_chats: bool = False

    @property
    def rows(self) -> int:
        """Rows read."""
        return len(self.marks)

    @property
    def digests(self) -> Digests:
        """(rows,) the marks, without a copy."""
        return np.frombuffer(self.marks, np.uint64) if self.marks else np.zeros(0, np.uint64)


def survey(source: DataSource, training: TrainingSpec, problems: Problems) -> Survey:
    """Read a dataset once. Raises RunError where it holds no row, or template and columns cannot work."""
    found = Survey(source)
    reader = DatasetReader(source, training)
    seen = 0
    for row in reader.rows():
        seen += 1
        try:
            _add(found, row, problems)
        except UnicodeEncodeError:
            problems.add(_surrogate(source, row))
    if not seen:
        what = "holds no row" if source.bytes else "is empty"
        remedy = "Give a file with at least 1 row."
        raise RunError(FailureClass.INVALID_DATA, "NoRows", f"{source.where} {what}", remedy)
    reader.check_references()
    found.columns, found.extra_columns = list(reader.columns), reader.extra_columns()
    found.warnings = [*(template_warnings(reader.maker, source.where) if reader.maker else ()), *_warnings(found)]
    return found


def _add(found: Survey, row: ReadRow | Problem, problems: Problems) -> None:
    if isinstance(row, Problem):
        problems.add(row)
        return
    said = row.said
    found.marks.append(_digest(said))
    found.joined += said.prompt[-1:].isalnum() and said.completion[:1].isalnum()
    found.has_chats = found.has_chats or said.chat is not None
    if not said.completion:
        found.notes.add("null" if said.null else "empty", row.file, row.line)
    elif said.completion.isspace():
        found.notes.add("blank", row.file, row.line)


def _digest(said: Said) -> int:
    text = said.chat.canonical() if said.chat else f"{len(said.prompt)}:{said.prompt}{said.completion}"
    found = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())  # Fails for half a surrogate pair.
    return (found or 1) if said.completion else EMPTY


def _surrogate(source: DataSource, row: ReadRow | Problem) -> Problem:
    message = "the text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
    return Problem(source.dataset.name, row.file, row.line, None, message)


def _warnings(found: Survey) -> list[str]:
    where, warnings = found.source.where, []
    if found.joined:
        what = "prompt and completion meet letter to letter; nothing is put between"
        warnings.append(f"{where}: in {found.joined} rows {what}")
    blank = found.notes.rows["blank"]
    if blank:
        warnings.append(f"{where}: {blank} rows have a completion of blanks alone; they are learned as they are")
    return warnings
