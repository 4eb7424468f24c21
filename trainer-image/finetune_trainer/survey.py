"""The first reading of a dataset: every row parsed and rendered, none kept.

It finds all problems, counts the rows the split is made of, and takes a digest of each, so that the second reading,
which tokenises, can stream.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from finetune_api.names import FailureClass
from finetune_api.resource import Dataset, Format, TrainingSpec

from finetune_trainer.errors import RowError, RunError
from finetune_trainer.pairs import PairMaker, check_references, pair_maker, template_warnings
from finetune_trainer.rows import Row, read_rows, rename_columns

PROBLEMS_SHOWN = 20
"""Most problems that the data report lists; all are counted."""

EMPTY = b""
"""Stands for the digest of a row with an empty completion."""

MOST_COLUMNS = 200
"""Most column names remembered per dataset: rows with made-up keys must not fill the memory."""


@dataclass(frozen=True)
class DataFile:
    """One dataset's file, on the local disk."""

    dataset: Dataset
    path: Path
    file_format: Format
    sha256: str

    @property
    def where(self) -> str:
        """How to call it in a message."""
        return f"dataset '{self.dataset.name}', {self.dataset.uri}"


@dataclass(frozen=True, slots=True)
class RenderedRow:
    """A row as prompt and completion."""

    number: int
    """In its dataset, from 0."""
    line: int
    prompt: str
    completion: str


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row."""

    dataset: str
    file: str
    line: int
    column: str | None
    message: str

    def __str__(self) -> str:
        return f"dataset '{self.dataset}', {self.file}, line {self.line}: {self.message}"


@dataclass
class Problems:
    """All problems counted, the first ones kept."""

    total: int = 0
    first: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        """Count one more."""
        self.total += 1
        if len(self.first) < PROBLEMS_SHOWN:
            self.first.append(problem)

    def error(self, report_uri: str) -> RunError:
        """The first of at least 1 problems as a RunError (InvalidData)."""
        more = f" (and {self.total - 1} more problems, see {report_uri})" if self.total > 1 else ""
        remedy = "Correct the rows named, then create the Finetune again."
        return RunError(FailureClass.INVALID_DATA, "RowInvalid", f"{self.first[0]}{more}", remedy)


class DatasetReader:
    """Reads a dataset's rows as prompt and completion; the first readable row decides how."""

    def __init__(self, file: DataFile, training: TrainingSpec) -> None:
        self.file = file
        self.training = training
        self.maker: PairMaker | None = None
        self.columns: dict[str, None] = {}
        self.first_line = 0
        """Where the row stands that decided how to read."""
        self.missing: set[str] = set()
        """Columns that act and that no row has had so far."""

    def rows(self) -> Iterator[RenderedRow | Problem]:
        """All rows up to `maxRows`, in order; a Problem in place of one that cannot be used.

        Raises RunError where template or columns cannot work for any row, as far as the first one tells.
        """
        limit = self.file.dataset.max_rows
        for number, row in enumerate(read_rows(self.file.path, self.file.file_format)):
            if number == limit:
                return
            try:
                yield self._rendered(number, row)
            except RowError as error:
                line = row.line or error.line or 0
                yield Problem(self.file.dataset.name, self.file.dataset.uri, line, error.column, error.message)

    def extra_columns(self) -> list[str]:
        """Columns that no template and no row type uses."""
        used = self.maker.columns() if self.maker else set()
        return [name for name in self.columns if name not in used]

    def check_references(self) -> None:
        """Once all rows are read: RunError (TemplateInvalid) for a template that names a column no row has."""
        if self.maker:
            check_references(self.maker, self.missing, list(self.columns), self._first_row)

    @property
    def _first_row(self) -> str:
        return f"{self.file.where}, line {self.first_line}"

    def _rendered(self, number: int, row: Row | RowError) -> RenderedRow:
        if isinstance(row, RowError):
            raise row
        values = rename_columns(row.values, self.file.dataset.columns)
        if len(self.columns) < MOST_COLUMNS:
            self.columns.update(dict.fromkeys(values))
        if self.maker is None:
            self.first_line = row.line
            self.maker = pair_maker(self.file.dataset, self.training, list(values), self._first_row)
            self.missing = self.maker.columns()
        if self.missing:
            self.missing -= values.keys()
        return RenderedRow(number, row.line, *self.maker.pair(values))


@dataclass
class Survey:
    """What the first reading of one dataset found."""

    file: DataFile
    digests: list[bytes] = field(default_factory=list)
    """For each row a digest of prompt and completion, or EMPTY."""
    warnings: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    extra_columns: list[str] = field(default_factory=list)
    joined: int = 0
    """Rows whose prompt and completion meet letter to letter."""

    @property
    def rows(self) -> int:
        """Rows read."""
        return len(self.digests)


def survey(file: DataFile, training: TrainingSpec, problems: Problems) -> Survey:
    """Read a dataset once. Raises RunError where it holds no row, or template and columns cannot work."""
    found = Survey(file)
    reader = DatasetReader(file, training)
    seen = 0
    for row in reader.rows():
        seen += 1
        try:
            _add(found, row, problems)
        except UnicodeEncodeError:
            problems.add(_surrogate(file, row))
    if not seen:
        what = "is empty" if not file.path.stat().st_size else "holds no row"
        remedy = "Give a file with at least 1 row."
        raise RunError(FailureClass.INVALID_DATA, "NoRows", f"{file.where} {what}", remedy)
    reader.check_references()
    found.warnings.extend(template_warnings(reader.maker, file.where) if reader.maker else ())
    if found.joined:
        found.warnings.append(
            f"{file.where}: in {found.joined} rows prompt and completion meet letter to letter; nothing is put between"
        )
    found.columns, found.extra_columns = list(reader.columns), reader.extra_columns()
    return found


def _add(found: Survey, row: RenderedRow | Problem, problems: Problems) -> None:
    if isinstance(row, Problem):
        problems.add(row)
        return
    found.digests.append(_digest(row))
    found.joined += row.prompt[-1:].isalnum() and row.completion[:1].isalnum()


def _digest(row: RenderedRow) -> bytes:
    if not row.completion:
        row.prompt.encode()  # Only to see half a surrogate pair, also in a row that will be dropped.
        return EMPTY
    text = f"{len(row.prompt)}:{row.prompt}{row.completion}"
    return blake2b(text.encode(), digest_size=16).digest()


def _surrogate(file: DataFile, row: RenderedRow | Problem) -> Problem:
    message = "the text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
    return Problem(file.dataset.name, file.dataset.uri, row.line, None, message)
