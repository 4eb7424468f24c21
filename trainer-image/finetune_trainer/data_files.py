"""A dataset on the local disk: its files in the order in which they are read, and what tells it from a changed one."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from finetune_api.sources import Dataset, Format

from finetune_trainer.formats import COLUMNAR


@dataclass(frozen=True)
class DataFile:
    """One file."""

    path: Path
    uri: str
    """Where it came from."""
    file_format: Format
    sha256: str

    def place(self, line: int) -> str:
        """How to call one of its rows in a message."""
        return f"{self.uri}, {'row' if self.file_format in COLUMNAR else 'line'} {line}"


@dataclass(frozen=True)
class DataSource:
    """All files of one dataset; row numbers run on through them."""

    dataset: Dataset
    files: tuple[DataFile, ...]
    commit: str | None = None
    """Of a hub dataset."""

    @property
    def where(self) -> str:
        """How to call it in a message."""
        return f"dataset '{self.dataset.name}', {public_uri(self.dataset.uri)}"

    @property
    def sha256(self) -> str:
        """SHA-256 of the one file, or of the lines `SHA256  NAME` of several, as `sha256sum` prints them."""
        if len(self.files) == 1:
            return self.files[0].sha256
        lines = [f"{file.sha256}  {file.uri.rpartition('/')[2]}\n" for file in self.files]
        return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()

    @property
    def revision(self) -> str:
        """The commit of a hub dataset, else the digest of its bytes."""
        return self.commit or f"sha256:{self.sha256}"

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.path.stat().st_size for file in self.files)


def public_uri(uri: str) -> str:
    """The URI without the query of an https URL, which may hold a signature."""
    return uri.partition("?")[0] if uri.startswith("https://") else uri
