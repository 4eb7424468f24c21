"""Rows from parquet and arrow files, in batches; a row is named by its number, since there are no lines.

Arrow comes in two framings: the file (as `pyarrow` and `polars` write it) and the stream (as `datasets` saves it).
pyarrow is imported here alone, and only when such a file is read.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.errors import RowError, quoted
from finetune_trainer.rows import Row

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.ipc import RecordBatchFileReader

BATCH_ROWS = 512
"""Rows that are Python values at once."""

PARQUET_MAGIC = b"PAR1"
ARROW_FILE_MAGIC = b"ARROW1"
ARROW_STREAM_MAGIC = b"\xff\xff\xff\xff"
"""Continuation marker before the first message. Source: Apache Arrow columnar format, "Encapsulated message format"."""


def read_parquet(path: Path) -> Iterator[Row | RowError]:
    """The rows of a parquet file, one row group after the other."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, memory_map=True) as file:
            yield from _rows(file.schema_arrow.names, file.iter_batches(BATCH_ROWS))
    except (ArrowException, OSError) as error:
        yield RowError(f"the file is not readable parquet: {error}", line=1)


def read_arrow(path: Path) -> Iterator[Row | RowError]:
    """The rows of an arrow file or stream."""
    import pyarrow
    from pyarrow import ArrowException, ipc

    try:
        with pyarrow.memory_map(str(path)) as source:
            reader = ipc.open_file(source) if is_arrow_file(path) else ipc.open_stream(source)
            batches = _file_batches(reader) if is_arrow_file(path) else reader
            yield from _rows(reader.schema.names, (part for batch in batches for part in _parts(batch)))
    except (ArrowException, OSError) as error:
        yield RowError(f"the file is not readable arrow: {error}", line=1)


def is_arrow_file(path: Path) -> bool:
    """Whether the file is framed as a file, not as a stream."""
    with path.open("rb") as file:
        return file.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC


def _file_batches(reader: "RecordBatchFileReader") -> Iterator["RecordBatch"]:
    return (reader.get_batch(number) for number in range(reader.num_record_batches))


def _rows(names: list[str], batches: Iterable["RecordBatch"]) -> Iterator[Row | RowError]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        yield RowError(f"column {quoted(twice)} is there twice", column=twice[0], line=1)
        return
    number = 0
    for batch in batches:
        for values in _values(batch):
            number += 1
            yield values.at(number) if isinstance(values, RowError) else Row(number, values)


def _parts(batch: "RecordBatch") -> Iterator["RecordBatch"]:
    """A batch in slices: one written in a single piece may hold every row there is."""
    return (batch.slice(start, BATCH_ROWS) for start in range(0, batch.num_rows, BATCH_ROWS))


def _values(batch: "RecordBatch") -> Iterator[dict[str, Any] | RowError]:
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):  # Nobody checks texts and dates when they are written.
        for number in range(batch.num_rows):
            try:
                yield from batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield RowError(f"a text of the row is not UTF-8, at its byte {error.start + 1}")
            except (ValueError, OverflowError) as error:
                yield RowError(f"a value of the row cannot be read: {error}")
