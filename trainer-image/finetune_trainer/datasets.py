"""The files of a dataset, from where they are to the local disk."""

from pathlib import Path
from typing import Protocol

from finetune_api.names import FailureClass
from finetune_api.run import RunSpec, SecretFolder, StorageAccess
from finetune_api.sources import Dataset, Format

from finetune_trainer.data_files import DataFile, DataSource, public_uri
from finetune_trainer.errors import RunError
from finetune_trainer.folders import files_of_folder, is_glob, matching
from finetune_trainer.formats import SUFFIXES, detect_format
from finetune_trainer.hub import DATASET, HubRepository
from finetune_trainer.side_by_side import side_by_side
from finetune_trainer.store import NotFoundError, open_store, sha256_of, split_uri
from finetune_trainer.web import Opener, download

MOST_FILES = 10_000
"""Most files of one dataset: more are a wrong glob, and would take hours to ask for one by one."""


class Files(Protocol):
    """A place with files."""

    @property
    def uri(self) -> str:
        """The place, without a `/` at its end."""

    @property
    def commit(self) -> str | None:
        """Of a hub repository."""

    def inside(self, folder: str) -> "Files":
        """A folder of the place; the place itself for an empty name."""

    def names(self) -> list[str]:
        """Of all files, folders included. Raises NotFoundError where the place cannot be."""

    def get(self, name: str, target: Path, number: int) -> Path:
        """Bring one file, the one of a number, below `target`. Raises NotFoundError or RunError."""


class StoredFiles:
    """Files in S3 or in a folder of the machine."""

    commit = None

    def __init__(self, uri: str, access: StorageAccess) -> None:
        self.access = access
        self.store = open_store(uri, access)
        self.uri = self.store.uri

    def inside(self, folder: str) -> "StoredFiles":
        return StoredFiles(f"{self.uri}/{folder}", self.access) if folder else self

    def names(self) -> list[str]:
        return [item.key for item in self.store.list()]

    def get(self, name: str, target: Path, number: int) -> Path:
        path = target / f"{number:05d}"
        self.store.get_file(name, path)
        return path


class HubFiles:
    """Files of a dataset of the hub."""

    def __init__(self, repository: HubRepository, folder: str = "") -> None:
        self.repository = repository
        self.prefix = f"{folder}/" if folder else ""
        self.uri = f"{repository.uri}/{folder}".rstrip("/")
        self.commit = repository.revision

    def inside(self, folder: str) -> "HubFiles":
        return HubFiles(self.repository, f"{self.prefix}{folder}".rstrip("/"))

    def names(self) -> list[str]:
        known = self.repository.names()
        return [name.removeprefix(self.prefix) for name in known if name.startswith(self.prefix)]

    def get(self, name: str, target: Path, number: int) -> Path:
        if name not in self.names():
            raise NotFoundError(f"{self.uri}/{name}")
        self.repository.download(self.prefix + name, target)
        return target / (self.prefix + name)


def fetch_dataset(dataset: Dataset, spec: RunSpec, folder: Path, known: str | None = None) -> DataSource:
    """Bring a dataset's files below `folder`. `known` is the revision that an earlier try found.

    Raises RunError: InvalidData where nothing is there, its format is not known, or it changed (DatasetChanged).
    """
    target = folder / dataset.name
    target.mkdir(parents=True, exist_ok=True)
    source = _fetch(dataset, spec, target, known)
    if known is not None and source.revision != known:
        message = f"{source.where} is not what it was when this run first read it: {source.revision}, not {known}"
        remedy = "Leave a dataset alone while runs use it; create the Finetune again to take it as it is."
        raise RunError(FailureClass.INVALID_DATA, "DatasetChanged", message, remedy)
    return source


def _fetch(dataset: Dataset, spec: RunSpec, target: Path, known: str | None) -> DataSource:
    if dataset.uri.startswith("https://"):
        return fetch_web(dataset, target)
    if dataset.uri.startswith("hf://"):
        return fetch_hub(dataset, spec.model_credentials, target, known)
    place, path = _place(dataset.uri)
    return _take(dataset, StoredFiles(place, spec.storage), path, target)


def _place(uri: str) -> tuple[str, str]:
    """The folder above the first pattern or, without one, above the last name; and the path in it."""
    folder, name = split_uri(uri.rstrip("/"))
    while is_glob(folder):
        folder, parent = split_uri(folder)
        name = f"{parent}/{name}"
    return folder, f"{name}/" if uri.endswith("/") else name


def fetch_web(dataset: Dataset, target: Path, opener: Opener | None = None) -> DataSource:
    """The one file of an https URL."""
    uri = public_uri(dataset.uri)
    path = target / "00000"
    download(dataset.uri, path, f"dataset '{dataset.name}', {uri}", opener)
    return DataSource(dataset, (_data_file(dataset, uri, path),))


def fetch_hub(
    dataset: Dataset, credentials: SecretFolder | None, target: Path, known: str | None, endpoint: str | None = None
) -> DataSource:
    """Files of the commit that is `known`, else of the revision as it is now."""
    repository_id, inner = _hub_place(dataset)
    repository = HubRepository(repository_id, known or dataset.revision, credentials, endpoint, DATASET)
    return _take(dataset, HubFiles(repository), inner, target)


def _hub_place(dataset: Dataset) -> tuple[str, str]:
    """`OWNER/NAME` and the path in it. Raises RunError (InvalidData) where one of the two is missing."""
    owner, _, rest = dataset.uri.removeprefix("hf://").partition("/")
    name, _, inner = rest.partition("/")
    if not (owner and name):
        raise _no_dataset(f"dataset '{dataset.name}', {dataset.uri}: a dataset of the hub is hf://OWNER/NAME")
    return f"{owner}/{name}", inner


def _take(dataset: Dataset, files: Files, path: str, target: Path) -> DataSource:
    """The files that a path means at a place: one, those that match, or those of a folder."""
    where = f"dataset '{dataset.name}', {dataset.uri}"
    try:
        if is_glob(path):
            files, names = _matching(files, path)
        elif path and not path.endswith("/"):
            try:
                return _source(dataset, files, [path], target)
            except NotFoundError as error:
                files = files.inside(path)
                names = files.names()
                if error.bucket_missing or not names:
                    raise
                names = files_of_folder(names, dataset.role, dataset.format, where)
        else:
            files = files.inside(path.rstrip("/"))
            names = files_of_folder(files.names(), dataset.role, dataset.format, where.rstrip("/"))
    except NotFoundError as error:
        raise _no_dataset(f"{where}: the {'bucket' if error.bucket_missing else 'file'} is not there") from error
    if not 0 < len(names) <= MOST_FILES:
        raise _no_dataset(f"{where}: {len(names)} files match; 1 to {MOST_FILES} are needed")
    return _source(dataset, files, names, target)


def _matching(files: Files, pattern: str) -> tuple[Files, list[str]]:
    """The files that match, from the deepest folder that is no pattern: only what is below it is listed."""
    folders = pattern.split("/")
    fixed = next(number for number, name in enumerate(folders) if is_glob(name))
    files = files.inside("/".join(folders[:fixed]))
    return files, matching("/".join(folders[fixed:]), files.names())


def _source(dataset: Dataset, files: Files, names: list[str], target: Path) -> DataSource:
    def taken(number: int, name: str) -> DataFile:
        return _data_file(dataset, f"{files.uri}/{name}", files.get(name, target, number))

    return DataSource(dataset, tuple(side_by_side(taken, range(len(names)), names)), files.commit)


def _data_file(dataset: Dataset, uri: str, path: Path) -> DataFile:
    return DataFile(path, uri, _format(dataset, uri, path), sha256_of(path))


def _format(dataset: Dataset, uri: str, path: Path) -> Format:
    if dataset.format is not Format.AUTO:
        return dataset.format
    # What is empty has no format, and another message.
    found = detect_format(uri.rpartition("/")[2], path) if path.stat().st_size else Format.JSONL
    if found is None:
        names = [kind.value for kind in Format if kind is not Format.AUTO]
        raise RunError(
            FailureClass.INVALID_DATA,
            "FormatUnknown",
            f"dataset '{dataset.name}', {uri}: neither the name nor the first bytes tell the format",
            f"Set datasets[].format to {', '.join(names)}, or use a known suffix ({', '.join(SUFFIXES)}).",
        )
    return found


def _no_dataset(message: str) -> RunError:
    remedy = "Correct datasets[].uri, or upload the file."
    return RunError(FailureClass.INVALID_DATA, "DatasetNotFound", message, remedy)
