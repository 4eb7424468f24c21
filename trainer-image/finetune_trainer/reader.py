"""Reads a dataset's rows as what they say, file after file. Both readings go through here, so that they agree."""

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.resource import TrainingSpec

from finetune_trainer.data_files import DataFile, DataSource
from finetune_trainer.errors import RowError
from finetune_trainer.formats import read_rows
from finetune_trainer.pairs import RowMaker, Said
from finetune_trainer.problems import Problem
from finetune_trainer.row_types import check_references, row_maker
from finetune_trainer.rows import Row, rename_columns

MOST_COLUMNS = 200
"""Most column names remembered per dataset: rows with made-up keys must not fill the memory."""


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row, and what it says."""

    number: int
    """In its dataset, from 0."""
    line: int
    file: DataFile
    said: Said


class DatasetReader:
    """Reads a dataset's rows; the first readable one decides how."""

    def __init__(self, source: DataSource, training: TrainingSpec) -> None:
        self.source = source
        self.training = training
        self.maker: RowMaker | None = None
        self.columns: dict[str, None] = {}
        self.missing: set[str] = set()
        """Columns that act and that no row has had so far."""
        self._decided_at = ""
        """Where the row stands that decided how to read."""

    def rows(self) -> Iterator[ReadRow | Problem]:
        """All rows up to `maxRows`, in order; a Problem in place of one that cannot be used.

        Raises RunError where template or columns cannot work for any row, as far as the first one tells.
        """
        dataset = self.source.dataset
        for number, (file, row) in enumerate(self._raw_rows()):
            if number == dataset.max_rows:
                return
            try:
                yield self._read(number, file, row)
            except RowError as error:
                yield Problem(dataset.name, file, row.line or error.line or 0, error.column, error.message)

    def extra_columns(self) -> list[str]:
        """Columns that no template and no row type uses."""
        used = self.maker.columns() if self.maker else set()
        return [name for name in self.columns if name not in used]

    def check_references(self) -> None:
        """Once all rows are read: RunError (TemplateInvalid) for a template that names a column no row has."""
        if self.maker:
            check_references(self.maker, self.missing, list(self.columns), self._decided_at)

    def _raw_rows(self) -> Iterator[tuple[DataFile, Row | RowError]]:
        for file in self.source.files:
            for row in read_rows(file.path, file.file_format):
                yield file, row

    def _read(self, number: int, file: DataFile, row: Row | RowError) -> ReadRow:
        if isinstance(row, RowError):
            raise row
        values = rename_columns(row.values, self.source.dataset.columns)
        if len(self.columns) < MOST_COLUMNS:
            self.columns.update(dict.fromkeys(values))
        if self.maker is None:
            self._decided_at = f"dataset '{self.source.dataset.name}', {file.place(row.line)}"
            self.maker = row_maker(self.source.dataset, self.training, list(values), self._decided_at)
            self.missing = self.maker.columns()
        if self.missing:
            self.missing -= values.keys()
        return ReadRow(number, row.line, file, self.maker.read(values))
