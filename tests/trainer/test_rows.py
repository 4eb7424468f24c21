"""Reading rows: formats, lines and what can be wrong with them."""

import gzip
import json
from pathlib import Path

import pytest
from finetune_api.sources import Format
from finetune_trainer import rows, text_stream
from finetune_trainer.errors import RowError
from finetune_trainer.formats import detect_format, read_rows
from finetune_trainer.rows import Row, rename_columns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROWS = [{"a": "x", "b": "1"}, {"a": "line\nbreak", "b": '"quoted", with comma'}, {"a": "\u2028 U+2028", "b": ""}]


def read(path: Path, data: str | bytes, file_format: Format) -> list[Row | RowError]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(read_rows(path, file_format))


def lines_and_values(found: list[Row | RowError]) -> list[tuple[int, object]]:
    return [(row.line, row.values if isinstance(row, Row) else row.message) for row in found if row.line]


def test_a_text_file_gives_one_row_per_line_that_is_not_blank(tmp_path: Path) -> None:
    found = read(tmp_path / "rows", "\ufefffirst \r\n\n  \nsecond\u2028 line", Format.TEXT)
    assert lines_and_values(found) == [(1, {"text": "first "}), (4, {"text": "second\u2028 line"})]


def test_a_compressed_file_that_was_cut_is_told_behind_its_last_row(tmp_path: Path) -> None:
    data = gzip.compress("".join(json.dumps({"a": str(hash(n))}) + "\n" for n in range(20_000)).encode())
    *rows, problem = read(tmp_path / "rows", data[: len(data) // 2], Format.JSONL)
    assert isinstance(problem, RowError)
    assert "not whole gzip" in problem.message
    assert problem.line == len(rows) + 1


def test_a_utf16_file_is_told_as_such(tmp_path: Path) -> None:
    problem = read(tmp_path / "rows", "{}\n".encode("utf-16"), Format.JSONL)[0]
    assert isinstance(problem, RowError)
    assert problem.message == "the file is UTF-16: save it as UTF-8"


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_of_many_blocks_is_read_with_its_lines(tmp_path: Path, indent: int | None) -> None:
    rows = [{"a": "é" * (number % 500), "b": number} for number in range(3000)]
    found = read(tmp_path / "rows", json.dumps(rows, indent=indent, ensure_ascii=False), Format.JSON)
    assert [row.values for row in found if isinstance(row, Row)] == rows
    assert [row.line for row in found] == [1 if indent is None else 2 + 4 * number for number in range(3000)]


def test_a_mistake_far_into_a_json_array_is_named_by_line_and_column(tmp_path: Path) -> None:
    rows = ['{"a": "' + "x" * 100 + '"}'] * 9000
    problem = read(tmp_path / "rows", "[" + ",\n".join([*rows, " nonsense"]) + "]", Format.JSON)[-1]
    assert isinstance(problem, RowError)
    assert (problem.line, problem.message) == (9001, "the file is not JSON: Expecting value at column 2")
    data = ("[" + ",\n".join(rows) + ",\n").encode() + b'{"a": "\xff"}]'
    problem = read(tmp_path / "rows", data, Format.JSON)[-1]
    assert isinstance(problem, RowError)
    assert (problem.line, problem.message) == (9001, "byte 8 of the line is not UTF-8")


def test_the_same_rows_are_read_from_every_format(tmp_path: Path) -> None:
    jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    csv = 'a,b\nx,1\n"line\nbreak","""quoted"", with comma"\n\u2028 U+2028,\n'
    for data, file_format in (
        (jsonl, Format.JSONL),
        (json.dumps(ROWS, indent=1), Format.JSON),
        (json.dumps(ROWS, ensure_ascii=False), Format.JSON),
        (csv, Format.CSV),
        (csv.replace("\n", "\r\n").replace("line\r\nbreak", "line\nbreak"), Format.CSV),
        ("\ufeff" + csv, Format.CSV),
        ("\ufeff" + jsonl, Format.JSONL),
        (jsonl.replace("\n", "\r\n"), Format.JSONL),
        ("\ufeff" + json.dumps(ROWS), Format.JSON),
        (csv.replace(",", "\t").replace("with\t", "with,").replace('""\t', '"",'), Format.TSV),
        (gzip.compress(jsonl.encode()), Format.JSONL),
    ):
        found = read(tmp_path / "rows", data, file_format)
        assert [row.values for row in found if isinstance(row, Row)] == ROWS


def test_each_row_knows_the_line_it_starts_on(tmp_path: Path) -> None:
    assert [line for line, _ in lines_and_values(read(tmp_path / "a", '{}\n\n  \n{"a":1}\n\n', Format.JSONL))] == [1, 4]
    found = read(tmp_path / "b", '[\n{"a": 1},\n\n{"a":\n2}, {"a": 3}\n]\n', Format.JSON)
    assert [line for line, _ in lines_and_values(found)] == [2, 4, 5]
    found = read(tmp_path / "c", 'a,b\n1,"x\ny"\n2,z\n', Format.CSV)
    assert [line for line, _ in lines_and_values(found)] == [2, 4]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1', "not JSON: Expecting ',' delimiter at character 8"),
        ("nonsense", "not JSON: Expecting value at character 1"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1, "a": 2}', "column 'a' is there twice"),
        ("[1]", "the row is a list, not an object"),
        ("7", "the row is a number, not an object"),
        ("[" * 100_000, "not usable JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not usable JSON"),
    ],
)
def test_a_bad_json_line_is_named_and_the_others_are_still_read(tmp_path: Path, line: str, message: str) -> None:
    found = read(tmp_path / "rows", f'{{"a": 1}}\n{{"a": 2}}\n{line}\n{{"a": 3}}\n', Format.JSONL)
    assert len(found) == 4
    assert isinstance(found[2], RowError)
    assert found[2].line == 3
    assert message in found[2].message


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    found = read(tmp_path / "a", b'{"a": 1}\n{"a": "\xff"}\n', Format.JSONL)
    assert lines_and_values(found)[1] == (2, "byte 8 of the line is not UTF-8")
    found = read(tmp_path / "b", b"a\nx\n\xff\n", Format.CSV)
    assert lines_and_values(found)[1] == (3, "byte 1 of the line is not UTF-8")


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        ('{"a": 1}', 1, "must begin with ["),
        ('[{"a": 1}\n{"a": 2}]', 2, ", or ] expected"),
        ('[{"a": 1},\n nonsense]', 2, "not JSON: Expecting value at column 2"),
        ('[\n{"a": 1}', 2, ", or ] expected"),
        ('[{"a": 1},\n]', 2, "not JSON"),
        ('[{"a": 1},\n5]', 2, "a number, not an object"),
        ('[{"a": 1}]\n\n[{"a": 2}]\n', 3, "goes on behind the end of its array"),
        ("[]\n{}", 2, "goes on behind the end of its array"),
    ],
)
def test_a_bad_json_file_is_named_by_line(tmp_path: Path, data: str, line: int, message: str) -> None:
    problem = read(tmp_path / "rows.json", data, Format.JSON)[-1]
    assert isinstance(problem, RowError)
    assert problem.line == line
    assert message in problem.message


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        ("a,b\n1,2\n3\n", 3, "the line has 1 fields, the header 2"),
        ("a,b\n1,2,3\n", 2, "the line has 3 fields, the header 2"),
        ("a,b,a\n1,2,3\n", 1, "column 'a' is there twice"),
        ('a,b\n1,"2\n3,4\n', 2, "not CSV"),
    ],
)
def test_a_bad_csv_file_is_named_by_line(tmp_path: Path, data: str, line: int, message: str) -> None:
    problem = next(row for row in read(tmp_path / "rows.csv", data, Format.CSV) if isinstance(row, RowError))
    assert (problem.line, message in problem.message) == (line, True)


@pytest.mark.parametrize(
    ("file_format", "data", "line", "message"),
    [
        (Format.JSONL, '{"a": 1}\n{"a": "', 2, "the line is longer than 0 MiB"),
        (Format.TEXT, "a\n", 2, "the line is longer than 0 MiB"),
        (Format.JSON, '[{"a": 1},\n{"a": "', 2, "the value is longer than 0 MiB"),
        (Format.CSV, 'a\n1\n"', 3, "is its quotation mark closed?"),
    ],
)
def test_what_never_ends_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: Format, data: str, line: int, message: str
) -> None:
    for module, name in ((text_stream, "MOST_ROW_BYTES"), (rows, "MOST_ROW_BYTES"), (rows, "MOST_CELL_CHARACTERS")):
        monkeypatch.setattr(module, name, 1000)
    between = "\n" if file_format is Format.CSV else ""
    problem = read(tmp_path / "rows", data + between.join(["words "] * 200_000), file_format)[-1]
    assert isinstance(problem, RowError)
    assert (problem.line, message in problem.message) == (line, True), problem.message


@pytest.mark.parametrize("file_format", [Format.JSONL, Format.JSON, Format.CSV, Format.TSV, Format.TEXT])
@pytest.mark.parametrize("data", ["", "\n \n"])
def test_a_file_without_rows_gives_none(tmp_path: Path, file_format: Format, data: str) -> None:
    found = read(tmp_path / "rows", data, file_format)
    assert [row for row in found if isinstance(row, Row)] == []


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", "[", Format.JSONL),
        ("a.JSON", '\n[{"a": 1}]', Format.JSON),
        ("a.json", '{"a": 1}\n', Format.JSONL),
        ("a.csv", "{", Format.CSV),
        ("rows", ' [{"a": 1}]', Format.JSON),
        ("rows", '\ufeff{"a": 1}', Format.JSONL),
        ("rows.dat", "a,b", None),
        ("rows.txt", "a,b", Format.TEXT),
        ("rows.tsv.gz", "a,b", Format.TSV),
        ("rows", "PAR1", Format.PARQUET),
        ("rows.bin", "ARROW1", Format.ARROW),
        ("rows.parquet.gz", "a,b", None),
    ],
)
def test_the_format_goes_by_suffix_then_by_content(
    tmp_path: Path, name: str, data: str, expected: Format | None
) -> None:
    path = tmp_path / "file"
    path.write_text(data, encoding="utf-8")
    assert detect_format(name, path) is expected


def test_after_mapping_only_the_wanted_names_exist() -> None:
    row = {"q": 1, "a": 2, "x": 3}
    assert rename_columns(row, {"prompt": "q", "completion": "a"}) == {"x": 3, "prompt": 1, "completion": 2}
    assert rename_columns({"a": 1, "b": 2}, {"a": "b", "b": "a"}) == {"a": 2, "b": 1}
    assert rename_columns({"q": 1}, {"one": "q", "two": "q"}) == {"one": 1, "two": 1}


def test_mapping_a_missing_column_or_onto_one_that_is_there_is_refused() -> None:
    with pytest.raises(RowError, match=r"'q' \(columns.prompt\) is missing; there are 'a'"):
        rename_columns({"a": 1}, {"prompt": "q"})
    with pytest.raises(RowError, match="'prompt' would be there twice"):
        rename_columns({"q": 1, "prompt": 2}, {"prompt": "q"})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.none()), max_size=5))
def test_json_and_jsonl_give_back_whatever_was_written(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for data, file_format in ((lines, Format.JSONL), (json.dumps(rows, indent=2), Format.JSON)):
        found = read(tmp_path / "rows", data, file_format)
        assert [row.values for row in found if isinstance(row, Row)] == rows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)  # The first imports pyarrow.
@given(data=st.binary(max_size=60), file_format=st.sampled_from([kind for kind in Format if kind is not Format.AUTO]))
def test_no_bytes_make_a_reader_fail_in_another_way(tmp_path: Path, data: bytes, file_format: Format) -> None:
    assert all(isinstance(row, Row | RowError) and row.line for row in read(tmp_path / "rows", data, file_format))
