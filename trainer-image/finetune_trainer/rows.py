"""Rows from jsonl, json, csv, tsv and text files, one at a time, each with the line it starts on.

What is wrong with one row is yielded in its place, so that a report can show more than the first mistake. Files are
UTF-8, with or without a byte order mark. JSON Lines end at line feeds only: U+2028 is text.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from finetune_trainer.errors import RowError, quoted
from finetune_trainer.text_stream import MOST_ROW_BYTES, TextStream, lines_of

MOST_CELL_CHARACTERS = 16 * 1024 * 1024
"""A cell that is longer lacks its closing quotation mark, and would swallow the file."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file."""

    line: int
    """The line it starts on, from 1; in columnar files the row's number, from 1."""
    values: dict[str, Any]
    """Column to JSON value; always strings in csv and tsv. Columnar files may hold other values, which no text is."""


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


def read_jsonl(file: BinaryIO) -> Iterator[Row | RowError]:
    """JSON Lines: one object a line; whitespace-only lines are skipped."""
    for number, line in enumerate(lines_of(file), start=1):
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
        return problem.at(number)
    except (ValueError, RecursionError) as error:
        return RowError(f"the line is not usable JSON: {error}", line=number)


def read_json(file: BinaryIO) -> Iterator[Row | RowError]:
    """A JSON array of objects, read as it is needed: what was yielded is forgotten."""
    stream = TextStream(file)
    try:
        first = stream.next_character()
        if first == "[":
            stream.position += 1
            yield from _array_items(stream)
        elif first:
            yield RowError("the file is not a JSON array: it must begin with [", line=1)
    except RowError as problem:  # Bytes that are not UTF-8.
        yield problem


def _array_items(stream: TextStream) -> Iterator[Row | RowError]:
    if stream.next_character() == "]":
        yield from _what_follows(stream)
        return
    while True:
        stream.next_character()
        line = stream.line
        try:
            value = _item(stream)
        except json.JSONDecodeError as error:
            line, column = stream.place(error.pos)
            yield RowError(f"the file is not JSON: {error.msg} at column {column}", line=line)
            return
        except (RowError, ValueError, RecursionError) as error:
            if isinstance(error, RowError) and error.line:
                raise  # Bytes that are not UTF-8, which `read_json` tells.
            yield RowError(f"the file is not usable JSON: {error}", line=line)
            return
        try:
            yield Row(line, _as_object(value))
        except RowError as problem:
            yield problem.at(line)
        ends = stream.next_character()
        if ends == "]":
            yield from _what_follows(stream)
            return
        if ends != ",":
            yield RowError("the array is not closed: , or ] expected", line=stream.line)
            return
        stream.position += 1


def _what_follows(stream: TextStream) -> Iterator[RowError]:
    """A problem where anything but blanks is behind the array's end, at `position`: its rows would be lost."""
    stream.position += 1
    if stream.next_character():
        yield RowError("the file goes on behind the end of its array", line=stream.line)


def _item(stream: TextStream) -> object:
    """The value at the stream's position, however many blocks it spans. Raises what the JSON decoder raises."""
    while True:
        try:
            value, end = _DECODER.raw_decode(stream.text, stream.position)
        except json.JSONDecodeError:
            if len(stream.text) - stream.position > MOST_ROW_BYTES:
                raise RowError(f"the value is longer than {MOST_ROW_BYTES // 2**20} MiB") from None
            if not stream.more():
                raise
            continue
        # A number at the end of what was read may go on.
        if end == len(stream.text) and stream.more():
            continue
        stream.position = end
        return value


def read_csv(file: BinaryIO, delimiter: str = ",") -> Iterator[Row | RowError]:
    """CSV or, with a tab, TSV; the first line names the columns. Cells may be quoted, also over several lines."""
    csv.field_size_limit(MOST_CELL_CHARACTERS)
    reader = csv.reader(_good_lines(file), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            kind = "CSV" if delimiter == "," else "TSV"
            yield RowError(f"the file is not {kind}: {_csv_words(error)}", line=line)
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


def _csv_words(error: csv.Error) -> str:
    if "field limit" not in str(error):
        return str(error)
    return f"a cell is longer than {MOST_CELL_CHARACTERS // 2**20} million characters; is its quotation mark closed?"


def read_text(file: BinaryIO) -> Iterator[Row | RowError]:
    """One row with column `text` for each line that is more than blanks, without its line end."""
    for number, line in enumerate(lines_of(file), start=1):
        if isinstance(line, RowError):
            yield line
        elif line and not line.isspace():
            yield Row(number, {"text": line.rstrip("\r\n")})


def _good_lines(file: BinaryIO) -> Iterator[str]:
    for line in lines_of(file):
        if isinstance(line, RowError):
            raise line
        yield line


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
