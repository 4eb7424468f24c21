"""The data report: what a person wants to know about the rows, also where they could not be used."""

from typing import Any

import numpy as np
from finetune_api.base import StrictModel
from finetune_api.findings import DataStatus
from finetune_api.words import shortened
from pydantic import Field

from finetune_trainer.corpus import Sample
from finetune_trainer.data_files import public_uri
from finetune_trainer.prepared import Offsets
from finetune_trainer.problems import SHOWN, Problem, Problems
from finetune_trainer.survey import Survey

HISTOGRAM_BINS = 20
SAMPLE_CHARACTERS = 4000
"""Longest piece shown."""


class ProblemEntry(StrictModel):
    """What is wrong with one row."""

    dataset: str
    file: str
    line: int
    """From 1; in parquet and arrow files the row."""
    column: str | None = None
    message: str


class ProblemList(StrictModel):
    """All problems, the first of them in full."""

    total: int = 0
    first: list[ProblemEntry] = Field(default_factory=list)


class NoteEntry(StrictModel):
    """Rows that are strange and no error."""

    kind: str
    """`empty` or `null` (completion; dropped), `blank` (a completion of blanks alone; learned), `overlong`, `duplicate`
    (a train row that repeats a dev or test row; dropped)."""
    rows: int
    first: list[str]
    """Places of the first ones."""


class DatasetEntry(StrictModel):
    """One dataset."""

    name: str
    uri: str
    revision: str
    """Commit of a hub dataset, else a digest."""
    sha256: str
    files: int
    first_files: list[str]
    """In the order in which they are read."""
    rows: int
    columns: list[str]
    extra_columns: list[str]
    """Columns that nothing uses."""
    notes: list[NoteEntry]


class LengthBin(StrictModel):
    """Train rows of a length."""

    from_tokens: int
    to_tokens: int
    """Inclusive."""
    rows: int


class PieceEntry(StrictModel):
    """A part of a row."""

    text: str
    learned: bool


class SampleEntry(StrictModel):
    """A train row as the model sees it: begin, end and template tokens included."""

    dataset: str
    row: int
    pieces: list[PieceEntry]


class DataReport(StrictModel):
    """`prepared/report.json`."""

    datasets: list[DatasetEntry]
    problems: ProblemList
    data: DataStatus | None = None
    """Counts; absent where the data could not be used."""
    lengths: list[LengthBin] = Field(default_factory=list)
    """Histogram of the train rows' lengths in tokens."""
    supervised_share: float | None = None
    """Share of the train tokens that are learned."""
    repeats: int | None = None
    """Train rows that say what an earlier train row says; they are kept."""
    steps_per_epoch: int | None = None
    total_steps: int | None = None
    """Optimizer steps in all."""
    samples: list[SampleEntry] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)


def data_report(surveys: list[Survey], problems: Problems, **found: Any) -> DataReport:
    """The report on what is known so far; `found` are its fields that only usable data has."""
    return DataReport(
        datasets=[_dataset(survey) for survey in surveys],
        problems=ProblemList(total=problems.total, first=[_problem(problem) for problem in problems.first]),
        **found,
    )


def length_histogram(lengths: Offsets) -> list[LengthBin]:
    """Rows by length, in at most HISTOGRAM_BINS bins of one width from 1 to the longest."""
    if not len(lengths):
        return []
    width = -(-int(lengths.max()) // HISTOGRAM_BINS)
    counts = np.bincount((lengths - 1) // width)
    return [
        LengthBin(from_tokens=number * width + 1, to_tokens=(number + 1) * width, rows=int(count))
        for number, count in enumerate(counts)
    ]


def sample_entry(sample: Sample) -> SampleEntry:
    """A sample with its texts shortened."""
    pieces = [
        PieceEntry(text=shortened(piece.text, SAMPLE_CHARACTERS), learned=piece.learned) for piece in sample.pieces
    ]
    return SampleEntry(dataset=sample.dataset, row=sample.row, pieces=pieces)


def _problem(problem: Problem) -> ProblemEntry:
    return ProblemEntry(
        dataset=problem.dataset,
        file=problem.file.uri,
        line=problem.line,
        column=problem.column,
        message=problem.message,
    )


def _dataset(survey: Survey) -> DatasetEntry:
    source, notes = survey.source, survey.notes
    return DatasetEntry(
        name=source.dataset.name,
        uri=public_uri(source.dataset.uri),
        revision=source.revision,
        sha256=source.sha256,
        files=len(source.files),
        first_files=[file.uri for file in source.files[:SHOWN]],
        rows=survey.rows,
        columns=survey.columns,
        extra_columns=survey.extra_columns,
        notes=[NoteEntry(kind=kind, rows=rows, first=notes.first[kind]) for kind, rows in sorted(notes.rows.items())],
    )
