"""Parquet and arrow: the same rows as from text, and what can be wrong with them."""

import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from finetune_api.sources import Format
from finetune_trainer.errors import RowError
from finetune_trainer.formats import detect_format, read_rows
from finetune_trainer.rows import Row
from finetune_trainer.template import text_of

ROWS: list[dict[str, Any]] = [
    {"id": number, "prompt": f"{number} \u2028 <<x>>", "completion": None if number == 3 else "yes", "score": 0.5}
    for number in range(1300)
]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=400)
    return path


def write_arrow_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return path


def write_arrow_stream(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As `datasets` saves it."""
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    return path


WRITERS = {
    "parquet": (write_parquet, Format.PARQUET),
    "arrow file": (write_arrow_file, Format.ARROW),
    "arrow stream": (write_arrow_stream, Format.ARROW),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_come_back_in_order_with_their_numbers_and_the_content_tells_the_format(tmp_path: Path, kind: str) -> None:
    write, file_format = WRITERS[kind]
    path = write(tmp_path / "rows", ROWS)
    assert detect_format("rows", path) is file_format
    found = list(read_rows(path, file_format))
    assert found == [Row(number, values) for number, values in enumerate(ROWS, start=1)]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_damaged_file_is_told(tmp_path: Path, kind: str) -> None:
    write, file_format = WRITERS[kind]
    path = write(tmp_path / "rows", ROWS)
    path.write_bytes(path.read_bytes()[:200])
    problem = list(read_rows(path, file_format))[-1]
    assert isinstance(problem, RowError)
    assert f"not readable {file_format}" in problem.message


def test_a_text_that_is_not_utf8_is_named_by_row_and_the_others_are_read(tmp_path: Path) -> None:
    texts = pyarrow.array([b"a", b"\xff", b"c"]).view(pyarrow.string())
    table = pyarrow.Table.from_arrays([texts], ["text"])
    with pyarrow.ipc.new_file(tmp_path / "rows", table.schema) as writer:
        writer.write_table(table)
    first, bad, last = read_rows(tmp_path / "rows", Format.ARROW)
    assert (first, last) == (Row(1, {"text": "a"}), Row(3, {"text": "c"}))
    assert isinstance(bad, RowError)
    assert (bad.line, bad.message) == (2, "a text of the row is not UTF-8, at its byte 1")


def test_a_date_that_python_does_not_know_is_named_by_row(tmp_path: Path) -> None:
    days = pyarrow.array([0, 2**30, 1], pyarrow.int32()).view(pyarrow.date32())
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([days], ["day"]), tmp_path / "rows")
    first, bad, last = read_rows(tmp_path / "rows", Format.PARQUET)
    assert (first, last) == (Row(1, {"day": datetime.date(1970, 1, 1)}), Row(3, {"day": datetime.date(1970, 1, 2)}))
    assert isinstance(bad, RowError)
    assert bad.line == 2
    assert bad.message.startswith("a value of the row cannot be read: days=1073741824")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["text", "text"])
    with pyarrow.ipc.new_file(tmp_path / "rows", table.schema) as writer:
        writer.write_table(table)
    [problem] = read_rows(tmp_path / "rows", Format.ARROW)
    assert isinstance(problem, RowError)
    assert (problem.column, problem.message) == ("text", "column 'text' is there twice")


@pytest.mark.parametrize(
    ("value", "words"),
    [(datetime.date(2026, 1, 2), "of type date"), (b"x", "of type bytes"), (float("nan"), "NaN or infinity")],
)
def test_a_value_that_no_text_is_is_refused_where_it_is_used(tmp_path: Path, value: object, words: str) -> None:
    [row] = read_rows(write_parquet(tmp_path / "rows", [{"a": value, "b": "x"}]), Format.PARQUET)
    assert isinstance(row, Row)
    assert text_of(row.values, "b") == "x"
    with pytest.raises(RowError, match=words):
        text_of(row.values, "a")
