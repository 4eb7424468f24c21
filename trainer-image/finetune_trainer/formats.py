"""File formats: which one a file has, and its reader. A text file may be compressed with gzip."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from finetune_api.sources import Format

from finetune_trainer.columnar import (
    ARROW_FILE_MAGIC,
    ARROW_STREAM_MAGIC,
    PARQUET_MAGIC,
    read_arrow,
    read_parquet,
)
from finetune_trainer.errors import RowError
from finetune_trainer.rows import Row, read_csv, read_json, read_jsonl, read_text
from finetune_trainer.text_stream import BYTE_ORDER_MARK

SUFFIXES = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSON,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".parquet": Format.PARQUET,
    ".arrow": Format.ARROW,
    ".txt": Format.TEXT,
}

GZIP_SUFFIX = ".gz"
GZIP_MAGIC = b"\x1f\x8b"
GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)

COLUMNAR = frozenset({Format.PARQUET, Format.ARROW})
"""Formats without lines."""

FIRST_BYTES = 65536
"""What the content is judged by."""

Rows = Iterator[Row | RowError]


def read_rows(path: Path, file_format: Format) -> Rows:
    """The rows of a file in order; a RowError (with its line) in place of a row that cannot be read.

    `file_format` is not `auto`. After a problem that hides where the next row begins, reading ends.
    """
    if file_format is Format.PARQUET:
        return read_parquet(path)
    if file_format is Format.ARROW:
        return read_arrow(path)
    return _text_rows(path, file_format)


def format_of_name(name: str) -> Format | None:
    """The format that the suffix tells, before `.gz` too."""
    lower = name.lower()
    compressed = lower.endswith(GZIP_SUFFIX)
    found = next((kind for suffix, kind in SUFFIXES.items() if lower.removesuffix(GZIP_SUFFIX).endswith(suffix)), None)
    return None if compressed and found in COLUMNAR else found


def detect_format(name: str, path: Path) -> Format | None:
    """The format by the name's suffix, then by the first bytes; None where neither tells.

    A `.json` file that begins with `{` is read as JSON Lines, as many tools write it.
    """
    by_name = format_of_name(name)
    if by_name not in (None, Format.JSON):
        return by_name
    try:
        with _opened(path) as file:
            first = file.read(FIRST_BYTES)
    except GZIP_ERRORS:
        return by_name
    magics = {PARQUET_MAGIC: Format.PARQUET, ARROW_FILE_MAGIC: Format.ARROW, ARROW_STREAM_MAGIC: Format.ARROW}
    for magic, kind in magics.items():
        if first.startswith(magic):
            return kind
    begins = first.removeprefix(BYTE_ORDER_MARK).lstrip()[:1]
    return {b"[": Format.JSON, b"{": Format.JSONL}.get(begins, by_name)


def _text_rows(path: Path, file_format: Format) -> Rows:
    line = 0
    try:
        with _opened(path) as file:
            for row in _reader(file, file_format):
                line = row.line or line
                yield row
    except GZIP_ERRORS as error:
        yield RowError(f"the file is not whole gzip: {error}", line=line + 1)


def _reader(file: BinaryIO, file_format: Format) -> Rows:
    match file_format:
        case Format.JSONL:
            return read_jsonl(file)
        case Format.JSON:
            return read_json(file)
        case Format.CSV:
            return read_csv(file)
        case Format.TSV:
            return read_csv(file, delimiter="\t")
        case Format.TEXT:
            return read_text(file)
        case _:
            raise ValueError(f"no reader for format {file_format}")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed where they are gzip."""
    with path.open("rb") as file:
        compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        if compressed:
            with gzip.open(file) as content:
                yield cast(BinaryIO, content)
        else:
            yield file
