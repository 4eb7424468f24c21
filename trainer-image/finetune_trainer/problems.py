"""What is wrong with rows, and what is worth a note: all of it counted, the first cases kept with their place."""

from collections import Counter
from dataclasses import dataclass, field

from finetune_api.names import FailureClass

from finetune_trainer.data_files import DataFile
from finetune_trainer.errors import RunError

SHOWN = 20
"""Most problems, and most places of each kind of note, that the data report lists."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row."""

    dataset: str
    file: DataFile
    line: int
    """Line or, in a columnar file, row; from 1."""
    column: str | None
    message: str

    def __str__(self) -> str:
        return f"dataset '{self.dataset}', {self.file.place(self.line)}: {self.message}"


@dataclass
class Problems:
    """All problems counted, the first ones kept."""

    total: int = 0
    first: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        """Count one more."""
        self.total += 1
        if len(self.first) < SHOWN:
            self.first.append(problem)

    def error(self, report_uri: str) -> RunError:
        """The first of at least 1 problems as a RunError (InvalidData)."""
        more = f" (and {self.total - 1} more problems, see {report_uri})" if self.total > 1 else ""
        remedy = "Correct the rows named, then create the Finetune again."
        return RunError(FailureClass.INVALID_DATA, "RowInvalid", f"{self.first[0]}{more}", remedy)


@dataclass
class Notes:
    """Rows that are strange and no error, by why: empty, null, blank, overlong, duplicate."""

    rows: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)
    """Places of the first rows of each kind."""

    def add(self, kind: str, file: DataFile, line: int) -> None:
        """Count one more row."""
        self.rows[kind] += 1
        places = self.first.setdefault(kind, [])
        if len(places) < SHOWN:
            places.append(file.place(line))
