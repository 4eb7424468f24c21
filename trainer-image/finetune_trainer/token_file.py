"""`tokens.safetensors`, written row by row and read memory-mapped: neither side holds the tokens in memory.

Source: safetensors, "Format": eight bytes of header length, a JSON header, then the tensors without a gap.
"""

import json
import shutil
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FIELDS = {"offsets": "I64", "ids": "I32", "supervised": "BOOL"}
"""What each part has, and the format's word for the type; the widest first, so that all lie aligned."""

DTYPES: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "BOOL": np.dtype(np.bool_)}

Array = npt.NDArray[Any]


class PartWriter:
    """The token rows of one part, appended to two files; eight bytes a row stay in memory."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = {field: folder / f"{name}.{field}" for field in ("ids", "supervised")}
        self._files = {field: path.open("wb") for field, path in self.paths.items()}
        self._offsets = array("q", [0])
        self.supervised = 0
        """Ids that are learned."""
        self.highest = -1
        """Largest id; -1 without any."""

    def add(self, ids: npt.NDArray[np.int32], supervised: npt.NDArray[np.bool_]) -> None:
        """Append one row."""
        self._files["ids"].write(ids.astype(DTYPES["I32"], copy=False).tobytes())
        self._files["supervised"].write(supervised.tobytes())
        self._offsets.append(self._offsets[-1] + len(ids))
        self.highest = max(self.highest, int(ids.max(initial=-1)))
        self.supervised += int(np.count_nonzero(supervised))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def tokens(self) -> int:
        """Ids of all rows."""
        return self._offsets[-1]

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """(rows + 1,) where each row starts."""
        return np.array(self._offsets, np.int64)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(rows,) ids of each row."""
        return np.diff(self.offsets)

    def close(self) -> None:
        """Everything is in the files then."""
        for file in self._files.values():
            file.close()


def write_token_file(path: Path, parts: Mapping[str, PartWriter]) -> None:
    """Join all parts, which are closed, in one safetensors file; their own files are gone then."""
    header = _header(parts)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for part in parts.values():
            file.write(part.offsets.astype(DTYPES["I64"], copy=False).tobytes())
        for field in ("ids", "supervised"):
            for part in parts.values():
                with part.paths[field].open("rb") as source:
                    shutil.copyfileobj(source, file, 1024 * 1024)
                part.paths[field].unlink()


def read_token_file(path: Path) -> dict[str, Array]:
    """Each tensor as a view of the file; changes to it are not written. Raises ValueError for another kind of file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path.name} is no safetensors file")
        header = json.loads(file.read(length))
    return {name: _view(path, 8 + length, entry) for name, entry in header.items() if name != "__metadata__"}


def _header(parts: Mapping[str, PartWriter]) -> bytes:
    entries, position = {}, 0
    for field, dtype in FIELDS.items():
        for name, part in parts.items():
            count = len(part) + 1 if field == "offsets" else part.tokens
            end = position + count * DTYPES[dtype].itemsize
            entries[f"{name}.{field}"] = {"dtype": dtype, "shape": [count], "data_offsets": [position, end]}
            position = end
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)


def _view(path: Path, start: int, entry: dict[str, Any]) -> Array:
    dtype, [count], [offset, _] = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if not count:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="c", offset=start + offset, shape=(count,)).view(np.ndarray)
