"""Files in S3 or in a folder, by the same few operations.

A store is rooted at a URI; keys are relative to it and use `/`. What goes wrong is a RunError, except NotFoundError:
only the caller knows what the missing thing means.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Protocol

from finetune_api.names import FailureClass
from finetune_api.run import StorageAccess
from finetune_api.words import one_line

from finetune_trainer.errors import RunError

REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""The system does not let this user do it, or nobody."""

NO_PATH = {
    errno.ELOOP: "a symbolic link leads to itself",
    errno.ENAMETOOLONG: "a name is too long",
    errno.ENOTDIR: "what is above it is no folder",
    errno.EEXIST: "what is above it is no folder",
    errno.EISDIR: "it is a folder",
}
"""Why there can be no such file."""


class NotFoundError(Exception):
    """There is no such object, or no such bucket."""

    def __init__(self, uri: str, bucket_missing: bool = False) -> None:
        self.uri = uri
        self.bucket_missing = bucket_missing
        super().__init__(f"there is no bucket for {uri}" if bucket_missing else f"there is no {uri}")


@dataclass(frozen=True)
class StoredObject:
    """One stored file."""

    key: str
    """Relative to the store's root."""
    size: int
    """Bytes."""


class Store(Protocol):
    """A folder of objects. Each method raises NotFoundError for what is missing, RunError for everything else."""

    uri: str
    """The root, without a `/` at its end."""

    def get_bytes(self, key: str) -> bytes:
        """The content of one object."""

    def get_file(self, key: str, path: Path) -> None:
        """Write one object to `path`, whose folder must exist."""

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write one object; a reader sees the old content or the new, never a part."""

    def put_file(self, key: str, path: Path) -> None:
        """Write one object from a file, in parts where it is large."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write one object unless it exists; says whether this call wrote it. Of many callers exactly one does."""

    def keeps_what_is_there(self, key: str, data: bytes) -> bool:
        """Whether `put_if_absent` can be relied on, tried on an object of one's own that holds `data` already."""

    def list(self, prefix: str = "") -> list[StoredObject]:
        """All objects whose key starts with `prefix`, by key."""

    def head(self, key: str) -> StoredObject | None:
        """What is known of one object; None where there is none."""

    def fingerprint(self, key: str) -> str:
        """A word that changes with the content: S3's ETag, the SHA-256 of a file."""

    def verify(self, key: str, path: Path) -> None:
        """Check that the object holds the bytes of `path`, by size and checksum; RunError where it does not."""

    def delete(self, key: str) -> None:
        """Remove one object; one that is not there is removed already."""

    def abort_uploads(self) -> int:
        """Give up every upload that was begun and not finished; returns how many there were."""


def uri_of(store: Store, key: str) -> str:
    """The URI of one object."""
    return f"{store.uri}/{key}" if key else store.uri


def split_uri(uri: str) -> tuple[str, str]:
    """The URI of the folder and the name of the file in it."""
    folder, _, name = uri.rpartition("/")
    return folder, name


def open_store(uri: str, access: StorageAccess) -> Store:
    """The store at an `s3://BUCKET/PREFIX` or `file:///FOLDER` URI. Touches no network yet.

    Raises RunError (AccessDenied) for credentials that are not there, and InvalidConfig for another kind of URI.
    """
    scheme, _, rest = uri.partition("://")
    if "\0" in uri:
        raise RunError(FailureClass.INVALID_CONFIG, "PathInvalid", f"{uri!r} holds a null", "Correct the path.")
    if scheme == "s3":
        # Imported late: a run on folders needs no SDK, which takes longer to load than everything else here.
        from finetune_trainer.s3 import S3Store

        bucket, _, prefix = rest.partition("/")
        return S3Store(bucket, prefix.strip("/"), access)
    if scheme == "file":
        return FileStore(Path(rest))  # Literally: a path is no URL, and may hold % or #.
    raise RunError(
        FailureClass.INVALID_CONFIG, "UriUnsupported", f"{uri} is not readable here", "Use an s3:// or file:/// URI."
    )


class FileStore:
    """A folder of the machine, for `pvc://` and `configmap://` mounts and for runs without S3."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"file://{folder}".rstrip("/")

    def get_bytes(self, key: str) -> bytes:
        with self._reading(key) as path:
            return path.read_bytes()

    def get_file(self, key: str, path: Path) -> None:
        with self._reading(key) as source:
            shutil.copyfile(source, path)

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._new_file(key) as (temporary, path):
            temporary.write_bytes(data)
            temporary.replace(path)

    def put_file(self, key: str, path: Path) -> None:
        with self._new_file(key) as (temporary, target):
            shutil.copyfile(path, temporary)
            temporary.replace(target)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._new_file(key) as (temporary, path):
            temporary.write_bytes(data)
            try:
                os.link(temporary, path)  # Fails where the name exists, and shows the whole file at once.
            except FileExistsError:
                return False
            return True

    def keeps_what_is_there(self, key: str, data: bytes) -> bool:
        return not self.put_if_absent(key, data)

    def list(self, prefix: str = "") -> list[StoredObject]:
        with self._told("reading", "") as folder:
            if not folder.is_dir():
                return []
            next(folder.iterdir(), None)  # Where this may not be done, `rglob` finds nothing, and says nothing.
            paths = (path for path in folder.rglob("*") if path.is_file())
            keys = sorted(path.relative_to(folder).as_posix() for path in paths)
        return [self._describe(key) for key in keys if key.startswith(prefix)]

    def head(self, key: str) -> StoredObject | None:
        with self._told("reading", key) as path:
            return self._describe(key) if path.is_file() else None

    def verify(self, key: str, path: Path) -> None:
        if self.fingerprint(key) != sha256_of(path):
            raise damaged(uri_of(self, key))

    def fingerprint(self, key: str) -> str:
        with self._reading(key) as path:
            return sha256_of(path)

    def delete(self, key: str) -> None:
        with self._told("removing", key) as path:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # S3 has no empty folders either; one that holds something stays.
            for folder in takewhile(lambda folder: folder != self.folder, path.parents):
                folder.rmdir()

    def abort_uploads(self) -> int:
        return 0  # What is being written is a file like any other.

    def _describe(self, key: str) -> StoredObject:
        with self._reading(key) as path:
            return StoredObject(key, path.stat().st_size)

    @contextmanager
    def _reading(self, key: str) -> Iterator[Path]:
        with self._told("reading", key) as path:
            try:
                yield path
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise NotFoundError(uri_of(self, key)) from error

    @contextmanager
    def _new_file(self, key: str) -> Iterator[tuple[Path, Path]]:
        """A fresh temporary file beside the wanted path, gone afterwards."""
        with self._told("writing", key) as path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as file:
                temporary = Path(file.name)
            try:
                yield temporary, path
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _told(self, operation: str, key: str) -> Iterator[Path]:
        """The path of a key. Inside, what the user can mend is a RunError; a full or broken disk is not."""
        uri = uri_of(self, key)
        try:
            yield self.folder / key
        except OSError as error:
            if not str(error.filename).startswith(str(self.folder)):
                raise  # The run's own disk, which is no user's.
            if error.errno in REFUSED:
                raise denied(operation, uri, str(error.strerror), "Let the run's user do it.") from error
            if error.errno in NO_PATH:
                message = f"{operation} {uri} does not work: {NO_PATH[error.errno]}"
                raise RunError(FailureClass.INVALID_CONFIG, "PathInvalid", message, "Correct the path.") from error
            raise


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def denied(operation: str, uri: str, why: str, remedy: str) -> RunError:
    """Somebody refused: what was tried, on what, and who can allow it."""
    return RunError(FailureClass.ACCESS_DENIED, "AccessDenied", f"{operation} on {uri} was denied: {why}", remedy)


def infrastructure(message: str) -> RunError:
    """Something that may go away by itself."""
    return RunError(FailureClass.INFRASTRUCTURE, "StorageUnavailable", one_line(message))


def damaged(uri: str) -> RunError:
    """What lies in the store is not what was written."""
    return RunError(FailureClass.INFRASTRUCTURE, "UploadDamaged", f"{uri} does not hold the bytes that were written")
