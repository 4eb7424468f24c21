"""The prepared folder: what `prepare` writes and every attempt at training reads, the same bytes in the same order.

    prepared/tokens.safetensors   ids, supervised and offsets of train, dev and test rows
    prepared/references.jsonl     prompt and completion of each dev and test row, in the rows' order by part
    prepared/index.json           effective settings, counts and the SHA-256 of the others; written last
    prepared/report.json          the data report, for people

No pickle; loads without torch.
"""

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt
from finetune_api.base import Model
from finetune_api.findings import DataStatus, EffectiveHyperparameters, PlanStatus, Resolved, TrainingEstimate
from finetune_api.names import PREPARED_FOLDER, FailureClass, Stage
from finetune_api.run import RunResult
from pydantic import Field, ValidationError

from finetune_trainer.errors import RunError
from finetune_trainer.store import NotFoundError, Store, sha256_of, uri_of
from finetune_trainer.token_file import read_token_file

TOKENS_FILE = "tokens.safetensors"
REFERENCES_FILE = "references.jsonl"
INDEX_FILE = "index.json"
REPORT_FILE = "report.json"

EVALUATED_PARTS = ("dev", "test")
PARTS = ("train", *EVALUATED_PARTS)

Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenRows:
    """Rows of tokens, laid end to end: views of a file, which the system reads as they are used."""

    ids: Ids
    """(tokens,) token ids."""
    supervised: Flags
    """(tokens,) which ids are learned; the first of a row never is, since nothing comes before it."""
    offsets: Offsets
    """(rows + 1,) where each row starts, and where the last one ends."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Offsets:
        """(rows,) tokens of each row."""
        return np.diff(self.offsets)

    def supervised_in(self, rows: Sequence[int]) -> int:
        """Number of supervised tokens in the rows of these numbers."""
        return sum(int(np.count_nonzero(self.row(row)[1])) for row in rows)

    def row(self, number: int) -> tuple[Ids, Flags]:
        """Ids and supervised flags of one row, as views."""
        part = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        return self.ids[part], self.supervised[part]

    @classmethod
    def of(cls, tensors: Mapping[str, npt.NDArray[Any]], part: str) -> Self:
        """The rows of one part. Raises KeyError where a tensor is missing."""
        return cls(tensors[f"{part}.ids"], tensors[f"{part}.supervised"], tensors[f"{part}.offsets"])

    @classmethod
    def none(cls) -> Self:
        """No row at all."""
        return cls(np.zeros(0, np.int32), np.zeros(0, np.bool_), np.zeros(1, np.int64))


class Reference(Model):
    """What a dev or test row says, beside its tokens."""

    dataset: str
    """Name of the dataset."""
    row: int
    """Number of the row in its dataset, from 0."""
    line: int = 0
    """Where the row stands in its file, from 1; 0 where an earlier release prepared the data."""
    prompt: str
    """The rendered prompt."""
    completion: str
    """The rendered completion: what a model should answer."""
    prompt_ids: list[int]
    """The prompt's ids as generation sends them: a begin token where the tokenizer has one, then the prompt."""


class References(Sequence[Reference]):
    """The references of one part, read from their file as they are asked for."""

    def __init__(self, path: Path, part: str) -> None:
        self._path, self._prefix = path, f"{part} ".encode()
        self._places = array("q", self._starts())
        """Where each line starts, in bytes."""

    def _starts(self) -> Iterator[int]:
        place = 0
        with self._path.open("rb") as file:
            for line in file:
                if line.startswith(self._prefix):
                    yield place
                place += len(line)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, which: int) -> Reference: ...

    @overload
    def __getitem__(self, which: slice) -> list[Reference]: ...

    def __getitem__(self, which: int | slice) -> Reference | list[Reference]:
        if isinstance(which, slice):
            return list(self._read(self._places[which]))
        [found] = self._read([self._places[which]])
        return found

    def __iter__(self) -> Iterator[Reference]:
        return self._read(self._places)

    def _read(self, places: Iterable[int]) -> Iterator[Reference]:
        with self._path.open("rb") as file:
            for place in places:
                file.seek(place)
                yield Reference.model_validate_json(file.readline().removeprefix(self._prefix))


def continuable(references: Iterable[Reference], position_limit: int | None) -> Iterator[Reference]:
    """Those whose prompt a model can continue: it is not empty, and leaves room below the position limit."""
    limit = math.inf if position_limit is None else position_limit
    return (reference for reference in references if 0 < len(reference.prompt_ids) < limit)


class DatasetDigest(Model):
    """Which bytes a dataset was."""

    name: str
    uri: str
    sha256: str
    """SHA-256 of the whole file; of several, of the lines that `sha256sum` prints for them."""
    rows: int
    """Rows read."""


class PreparedIndex(Model):
    """What holds for every attempt; nobody computes it a second time. An attempt of another release may read it."""

    effective_hyperparameters: EffectiveHyperparameters
    resolved: Resolved
    data: DataStatus
    datasets: list[DatasetDigest]
    end_token_id: int
    """The id that ends every row but chats with an end of turn of their own."""
    turn_end_ids: list[int] = Field(default_factory=list)
    """Ids that end an answer of a chat: generation stops there too."""
    template_date: date | None = None
    """The date that the chat template was told, in every attempt."""
    plan: PlanStatus | None = None
    """How training will go about its work on the GPU that it gets; None on a CPU."""
    estimate: TrainingEstimate | None = None
    """How long it will take."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each other file, by name."""

    def result(self) -> RunResult:
        """What `prepare` answers, also when it is read a second time."""
        return RunResult(
            stage=Stage.PREPARE,
            data=self.data,
            effective_hyperparameters=self.effective_hyperparameters,
            resolved=self.resolved,
            plan=self.plan,
            estimate=self.estimate,
        )

    @property
    def end_ids(self) -> list[int]:
        """What ends a row or an answer: generation stops at each of them."""
        return list(dict.fromkeys([self.end_token_id, *self.turn_end_ids]))


@dataclass(frozen=True)
class Prepared:
    """Everything training needs to know about the data."""

    train: TokenRows
    dev: TokenRows
    test: TokenRows
    references: Mapping[str, Sequence[Reference]]
    """For `dev` and `test`: one for each row as read, in order; of a chat its last answer."""
    index: PreparedIndex

    def evaluated(self) -> tuple[TokenRows, Sequence[Reference]]:
        """What base and tuned model are measured on: test rows where there are some, else dev rows."""
        part = "test" if len(self.test) else "dev"
        return getattr(self, part), self.references[part]


class ReferenceWriter:
    """Appends references to their file, as they come."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / REFERENCES_FILE).open("w", encoding="utf-8", newline="\n")

    def add(self, part: str, reference: Reference) -> None:
        """Append one of part `dev` or `test`."""
        self._file.write(f"{part} {reference.model_dump_json(by_alias=True)}\n")

    def close(self) -> None:
        """Everything is in the file then."""
        self._file.close()


def write_prepared(store: Store, folder: Path, index: PreparedIndex) -> None:
    """Write the prepared folder below the run's root from the two files in `folder`.

    The index goes last, so a folder that has one is whole.
    """
    names = (TOKENS_FILE, REFERENCES_FILE)
    for name in names:
        store.put_file(prepared_key(name), folder / name)
    index = index.model_copy(update={"files": {name: sha256_of(folder / name) for name in names}})
    store.put_bytes(prepared_key(INDEX_FILE), index.model_dump_json(by_alias=True, indent=1).encode())


def read_index(store: Store) -> PreparedIndex | None:
    """The index that an earlier try left; None where there is none that this release can read."""
    try:
        return PreparedIndex.model_validate_json(store.get_bytes(prepared_key(INDEX_FILE)))
    except (NotFoundError, ValidationError):
        return None


def read_prepared(store: Store, scratch: Path) -> Prepared:
    """Read the prepared folder below the run's root and check its digests.

    Raises RunError (Infrastructure) where it is not there, not whole, or lacks what this release needs.
    """
    folder = scratch / "read-prepared"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        index = PreparedIndex.model_validate_json(store.get_bytes(prepared_key(INDEX_FILE)))
        for name, digest in index.files.items():
            store.get_file(prepared_key(name), folder / name)
            if sha256_of(folder / name) != digest:
                raise _unusable(store, f"{name} is not the file that the index names")
        return open_prepared(folder, index)
    except (NotFoundError, ValidationError, ValueError, KeyError) as error:
        raise _unusable(store, str(error)) from error


def open_prepared(folder: Path, index: PreparedIndex) -> Prepared:
    """The prepared data whose two files lie in `folder`. Raises ValueError or KeyError where they are not whole."""
    tensors = read_token_file(folder / TOKENS_FILE)
    rows = {part: TokenRows.of(tensors, part) for part in PARTS}
    references = {part: References(folder / REFERENCES_FILE, part) for part in EVALUATED_PARTS}
    return Prepared(**rows, references=references, index=index)


def prepared_key(name: str) -> str:
    """The key of a file of the prepared folder, below the run's root."""
    return f"{PREPARED_FOLDER}/{name}"


def _unusable(store: Store, why: str) -> RunError:
    return RunError(
        FailureClass.INFRASTRUCTURE,
        "PreparedDataUnusable",
        f"the prepared data in {uri_of(store, PREPARED_FOLDER)} cannot be used: {why}",
        "Create the Finetune again: prepare then writes it anew.",
    )
