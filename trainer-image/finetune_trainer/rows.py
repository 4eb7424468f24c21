"""Rows from jsonl, json and csv files, one at a time, each with the line it starts on.

What is wrong with one row is yielded in its place, so that a report can show more than the first mistake. Files are
UTF-8, with or without a byte order mark. JSON Lines end at line feeds only: U+2028 is text.
"""

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finetune_api.resource import Format

from finetune_trainer.errors import RowError, quoted

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

SUFFIXES = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSON,
    ".csv": Format.CSV,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file."""

    line: int
    """The line it starts on, from 1."""
    values: dict[str, Any]
    """Column to JSON value; always strings in csv."""


def read_rows(path: Path, file_format: Format) -> Iterator[Row | RowError]:
    """The rows of a file in order; a RowError (with its line) in place of a row that cannot be read.

    `file_format` is not `auto`. After a problem that hides where the next row begins, reading ends.
    """
    with path.open("rb") as file:
        match file_format:
            case Format.JSONL:
                yield from _read_jsonl(file)
            case Format.JSON:
                yield from _read_json(file)
            case Format.CSV:
                yield from _read_csv(file)
            case _:
                raise ValueError(f"no reader for format {file_format}")


def detect_format(name: str, path: Path) -> Format | None:
    """The format by the name's suffix, then by the first character; None where neither tells.

    A `.json` file that begins with `{` is read as JSON Lines, as many tools write it.
    """
    by_name = next((found for suffix, found in SUFFIXES.items() if name.lower().endswith(suffix)), None)
    if by_name in (Format.JSONL, Format.CSV):
        return by_name
    with path.open("rb") as file:
        first = file.read(65536).removeprefix(BYTE_ORDER_MARK).lstrip()[:1]
    return {b"[": Format.JSON, b"{": Format.JSONL}.get(first, by_name)


def rename_columns(values: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """The row under the wanted names (`columns`: wanted to file's); afterwards only they exist.

    Raises RowError where the file lacks a column, or a wanted name is there twice.
    """
    if not columns:
        return values
    for wanted, column in columns.items():
        if column not in values:
            there = quoted(tuple(values))
            raise RowError(f"column '{column}' (columns.{wanted}) is missing; there are {there}", column=column)
    taken = set(columns.values())
    kept = {name: value for name, value in values.items() if name not in taken}
    for wanted in columns:
        if wanted in kept:
            raise RowError(f"column '{wanted}' would be there twice: in the file and by columns", column=wanted)
    return kept | {wanted: values[column] for wanted, column in columns.items()}


def _read_jsonl(file: BinaryIO) -> Iterator[Row | RowError]:
    for number, line in enumerate(_lines(file), start=1):
        if isinstance(line, RowError):
            yield line
        elif line and not line.isspace():
            yield _parsed_line(line, number)


def _parsed_line(line: str, number: int) -> Row | RowError:
    try:
        return Row(number, _as_object(_DECODER.decode(line.rstrip("\r\n"))))
    except json.JSONDecodeError as error:
        return RowError(f"the line is not JSON: {error.msg} at character {error.pos + 1}", line=number)
    except RowError as problem:
        return RowError(problem.message, problem.column, number)
    except (ValueError, RecursionError) as error:
        return RowError(f"the line is not usable JSON: {error}", line=number)


def _read_json(file: BinaryIO) -> Iterator[Row | RowError]:
    lines = list(_lines(file))
    bad = next((line for line in lines if isinstance(line, RowError)), None)
    if bad is not None:
        yield bad
        return
    text = "".join(str(line) for line in lines)
    position = _skip_blanks(text, 0)
    if text[position : position + 1] != "[":
        if position < len(text):
            yield RowError("the file is not a JSON array: it must begin with [", line=1)
        return
    yield from _array_items(text, position + 1)


def _array_items(text: str, position: int) -> Iterator[Row | RowError]:
    line, counted, first = 1, 0, True
    while True:
        position = _skip_blanks(text, position)
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]" and first:
            return
        try:
            value, position = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            yield RowError(f"the file is not JSON: {error.msg} at column {error.colno}", line=error.lineno)
            return
        except (RowError, ValueError, RecursionError) as error:
            yield RowError(f"the file is not usable JSON: {error}", line=line)
            return
        try:
            yield Row(line, _as_object(value))
        except RowError as problem:
            yield RowError(problem.message, line=line)
        position, first = _skip_blanks(text, position), False
        ends = text[position : position + 1]
        if ends == "]":
            return
        if ends != ",":
            yield RowError("the array is not closed: , or ] expected", line=text.count("\n", 0, position) + 1)
            return
        position += 1


def _read_csv(file: BinaryIO) -> Iterator[Row | RowError]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(_good_lines(file), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield RowError(f"the file is not CSV: {error}", line=line)
            return
        except RowError as problem:
            yield problem
            return
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = cells
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                yield RowError(f"column {quoted(twice)} is there twice in the header", column=twice[0], line=line)
                return
        elif len(cells) == len(header):
            yield Row(line, dict(zip(header, cells, strict=True)))
        else:
            yield RowError(f"the line has {len(cells)} fields, the header {len(header)}", line=line)


def _lines(file: BinaryIO) -> Iterator[str | RowError]:
    """Decoded lines with their line feed."""
    for number, raw in enumerate(file, start=1):
        data = raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw
        try:
            yield data.decode("utf-8")
        except UnicodeDecodeError as error:
            yield RowError(f"byte {error.start + 1} of the line is not UTF-8", line=number)


def _good_lines(file: BinaryIO) -> Iterator[str]:
    for line in _lines(file):
        if isinstance(line, RowError):
            raise line
        yield line


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _as_object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError(f"the row is {_JSON_KINDS.get(type(value), 'a value')}, not an object with columns")
    return value


_JSON_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError(f"column '{twice}' is there twice", column=twice)
    return values


def _no_constant(name: str) -> object:
    raise RowError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
