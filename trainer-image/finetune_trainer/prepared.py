"""The prepared folder: what `prepare` writes and every attempt at training reads, the same bytes in the same order.

    prepared/tokens.safetensors   ids, supervised and offsets of train, dev and test rows
    prepared/references.jsonl     prompt and completion of each dev and test row, in the rows' order
    prepared/index.json           effective settings, counts and the SHA-256 of the others; written last
    prepared/report.json          the data report, for people

No pickle; loads without torch.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from finetune_api.base import Model
from finetune_api.names import PREPARED_FOLDER, FailureClass
from finetune_api.status import DataStatus, EffectiveHyperparameters, Resolved
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from finetune_trainer.errors import RunError
from finetune_trainer.store import NotFoundError, Store, sha256_of, uri_of

TOKENS_FILE = "tokens.safetensors"
REFERENCES_FILE = "references.jsonl"
INDEX_FILE = "index.json"
REPORT_FILE = "report.json"

PARTS = ("train", "dev", "test")

Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenRows:
    """Rows of tokens, laid end to end."""

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

    def row(self, number: int) -> tuple[Ids, Flags]:
        """Ids and supervised flags of one row, as views."""
        part = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        return self.ids[part], self.supervised[part]

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


def continuable(references: list[Reference], position_limit: int | None) -> list[Reference]:
    """Those whose prompt a model can continue: it is not empty, and leaves room below the position limit."""
    limit = math.inf if position_limit is None else position_limit
    return [reference for reference in references if 0 < len(reference.prompt_ids) < limit]


class DatasetDigest(Model):
    """Which bytes a dataset was."""

    name: str
    uri: str
    sha256: str
    """SHA-256 of the whole file."""
    rows: int
    """Rows read."""


class PreparedIndex(Model):
    """What holds for every attempt; nobody computes it a second time. An attempt of another release may read it."""

    effective_hyperparameters: EffectiveHyperparameters
    resolved: Resolved
    data: DataStatus
    datasets: list[DatasetDigest]
    end_token_id: int
    """The id that ends every row."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each other file, by name."""


@dataclass(frozen=True)
class Prepared:
    """Everything training needs to know about the data."""

    train: TokenRows
    dev: TokenRows
    test: TokenRows
    references: dict[str, list[Reference]]
    """For `dev` and `test`: one for each row, in order."""
    index: PreparedIndex

    def evaluated(self) -> tuple[TokenRows, list[Reference]]:
        """What base and tuned model are measured on: test rows where there are some, else dev rows."""
        part = "test" if len(self.test) else "dev"
        return getattr(self, part), self.references[part]


def write_prepared(store: Store, scratch: Path, prepared: Prepared) -> None:
    """Write the prepared folder below the run's root; the index goes last, so a folder that has one is whole."""
    folder = scratch / "write-prepared"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(prepared), folder / TOKENS_FILE)
    with (folder / REFERENCES_FILE).open("w", encoding="utf-8", newline="\n") as file:
        for part, references in prepared.references.items():
            file.writelines(f"{part} {reference.model_dump_json(by_alias=True)}\n" for reference in references)
    names = (TOKENS_FILE, REFERENCES_FILE)
    for name in names:
        store.put_file(prepared_key(name), folder / name)
    index = prepared.index.model_copy(update={"files": {name: sha256_of(folder / name) for name in names}})
    store.put_bytes(prepared_key(INDEX_FILE), index.model_dump_json(by_alias=True, indent=1).encode())


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
        tensors = load_file(folder / TOKENS_FILE)
        rows = {part: TokenRows(*(tensors[f"{part}.{field}"] for field in _FIELDS)) for part in PARTS}
    except (NotFoundError, ValidationError, SafetensorError, KeyError) as error:
        raise _unusable(store, str(error)) from error
    return Prepared(**rows, references=_read_references(folder / REFERENCES_FILE), index=index)


def prepared_key(name: str) -> str:
    """The key of a file of the prepared folder, below the run's root."""
    return f"{PREPARED_FOLDER}/{name}"


_FIELDS = ("ids", "supervised", "offsets")


def _tensors(prepared: Prepared) -> dict[str, npt.NDArray[np.generic]]:
    rows: dict[str, TokenRows] = {part: getattr(prepared, part) for part in PARTS}
    return {f"{part}.{field}": getattr(of, field) for part, of in rows.items() for field in _FIELDS}


def _read_references(path: Path) -> dict[str, list[Reference]]:
    found: dict[str, list[Reference]] = {"dev": [], "test": []}
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            part, _, text = line.partition(" ")
            found[part].append(Reference.model_validate_json(text))
    return found


def _unusable(store: Store, why: str) -> RunError:
    return RunError(
        FailureClass.INFRASTRUCTURE,
        "PreparedDataUnusable",
        f"the prepared data in {uri_of(store, PREPARED_FOLDER)} cannot be used: {why}",
        "Create the Finetune again: prepare then writes it anew.",
    )
