"""The data report: what a person wants to know about the rows, also where they could not be used."""

import numpy as np
from finetune_api.base import StrictModel
from finetune_api.status import DataStatus
from pydantic import Field

from finetune_trainer.corpus import Sample
from finetune_trainer.errors import shortened
from finetune_trainer.prepared import TokenRows
from finetune_trainer.survey import Problems, Survey

HISTOGRAM_BINS = 20
SAMPLE_CHARACTERS = 4000
"""Longest prompt or completion shown."""


class ProblemEntry(StrictModel):
    """What is wrong with one row."""

    dataset: str
    file: str
    line: int
    column: str | None = None
    message: str


class ProblemList(StrictModel):
    """All problems, the first of them in full."""

    total: int = 0
    first: list[ProblemEntry] = Field(default_factory=list)


class DatasetEntry(StrictModel):
    """One dataset."""

    name: str
    uri: str
    sha256: str
    rows: int
    columns: list[str]
    extra_columns: list[str]
    """Columns that nothing uses."""


class LengthBin(StrictModel):
    """Train rows of a length."""

    from_tokens: int
    to_tokens: int
    """Inclusive."""
    rows: int


class SampleEntry(StrictModel):
    """A rendered train row."""

    dataset: str
    row: int
    prompt: str
    completion: str


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
    samples: list[SampleEntry] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)


def data_report(
    surveys: list[Survey],
    problems: Problems,
    data: DataStatus | None = None,
    train: TokenRows | None = None,
    samples: list[Sample] | None = None,
    warnings: list[str] | None = None,
) -> DataReport:
    """The report on what is known so far."""
    return DataReport(
        datasets=[_dataset(survey) for survey in surveys],
        problems=ProblemList(total=problems.total, first=[ProblemEntry(**vars(problem)) for problem in problems.first]),
        data=data,
        lengths=length_histogram(train) if train is not None else [],
        supervised_share=data.supervised_tokens / data.tokens if data and data.tokens else None,
        samples=[_sample(sample) for sample in samples or []],
        warnings=warnings or [],
    )


def length_histogram(rows: TokenRows) -> list[LengthBin]:
    """Rows by length, in at most HISTOGRAM_BINS bins of one width from 1 to the longest."""
    if not len(rows):
        return []
    longest = int(rows.lengths.max())
    width = -(-longest // HISTOGRAM_BINS)
    counts = np.bincount((rows.lengths - 1) // width)
    return [
        LengthBin(from_tokens=number * width + 1, to_tokens=(number + 1) * width, rows=int(count))
        for number, count in enumerate(counts)
    ]


def _dataset(survey: Survey) -> DatasetEntry:
    dataset = survey.file.dataset
    return DatasetEntry(
        name=dataset.name,
        uri=dataset.uri,
        sha256=survey.file.sha256,
        rows=survey.rows,
        columns=survey.columns,
        extra_columns=survey.extra_columns,
    )


def _sample(sample: Sample) -> SampleEntry:
    return SampleEntry(
        dataset=sample.dataset,
        row=sample.row,
        prompt=shortened(sample.prompt, SAMPLE_CHARACTERS),
        completion=shortened(sample.completion, SAMPLE_CHARACTERS),
    )
