"""Files in S3 or in a folder, by the same few operations. The only module that imports boto3.

A store is rooted at a URI; keys are relative to it and use `/`. Credentials come from mounted files, never from the
environment, unless the SDK's own chain was asked for (workload identity). What goes wrong is a RunError, except
NotFoundError: only the caller knows what the missing thing means.
"""

import base64
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Protocol

import boto3
import boto3.exceptions
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from finetune_api.names import FailureClass
from finetune_api.run import StorageAccess

from finetune_trainer.credentials import read_keys
from finetune_trainer.errors import RunError, one_line

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 64 * 1024 * 1024
"""Larger files are uploaded in parts of this size; the checksum of the whole is made from the parts'."""

TRIES = 5
"""Calls per operation in all; the SDK waits longer before each (its standard mode)."""

BAD_KEYS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "XAdminUserNotFound"}
)
"""The keys themselves are wrong. The last is versitygw's word for an unknown access key; it comes with 404."""
DENIED = BAD_KEYS | {
    "AccessDenied",
    "403",
    "401",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "RequestExpired",
}
DENIED |= {"TokenRefreshRequired", "Forbidden"}
MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "NotFound", "404"})
CONFLICT = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})


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
    if scheme == "s3":
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

    def list(self, prefix: str = "") -> list[StoredObject]:
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        keys = sorted(path.relative_to(self.folder).as_posix() for path in paths)
        return [self._describe(key) for key in keys if key.startswith(prefix)]

    def head(self, key: str) -> StoredObject | None:
        return self._describe(key) if (self.folder / key).is_file() else None

    def verify(self, key: str, path: Path) -> None:
        if self.fingerprint(key) != sha256_of(path):
            raise damaged(uri_of(self, key))

    def fingerprint(self, key: str) -> str:
        with self._reading(key) as path:
            return sha256_of(path)

    def delete(self, key: str) -> None:
        path = self.folder / key
        try:
            path.unlink(missing_ok=True)
        except PermissionError as error:
            remedy = "Let the run's user remove it."
            raise denied("removing", uri_of(self, key), str(error.strerror), remedy) from error
        with suppress(OSError):
            path.parent.rmdir()  # S3 has no empty folders either; one that holds something stays.

    def _describe(self, key: str) -> StoredObject:
        with self._reading(key) as path:
            return StoredObject(key, path.stat().st_size)

    @contextmanager
    def _reading(self, key: str) -> Iterator[Path]:
        try:
            yield self.folder / key
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFoundError(uri_of(self, key)) from error
        except PermissionError as error:
            raise denied("reading", uri_of(self, key), str(error.strerror), "Let the run's user read it.") from error

    @contextmanager
    def _new_file(self, key: str) -> Iterator[tuple[Path, Path]]:
        """A fresh temporary file beside the wanted path, gone afterwards."""
        path = self.folder / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as file:
                temporary = Path(file.name)
        except PermissionError as error:
            remedy = "Let the run's user write there."
            raise denied("writing", uri_of(self, key), str(error.strerror), remedy) from error
        try:
            yield temporary, path
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()


class S3Store:
    """Objects below one prefix of one bucket."""

    def __init__(self, bucket: str, prefix: str, access: StorageAccess) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.access = access
        self.client = s3_client(access)

    def get_bytes(self, key: str) -> bytes:
        with self._errors("GetObject", key):
            return self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].read()

    def get_file(self, key: str, path: Path) -> None:
        with self._errors("GetObject", key):
            self.client.download_file(self.bucket, self.prefix + key, str(path))

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._errors("PutObject", key):
            self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data, ChecksumAlgorithm="SHA256")

    def put_file(self, key: str, path: Path) -> None:
        config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
        with self._errors("PutObject", key), path.open("rb") as file:
            self.client.upload_fileobj(
                file, self.bucket, self.prefix + key, ExtraArgs={"ChecksumAlgorithm": "SHA256"}, Config=config
            )

    def put_if_absent(self, key: str, data: bytes) -> bool:
        for _ in range(TRIES):
            with self._errors("PutObject", key, allowed=CONFLICT):
                self.client.put_object(
                    Bucket=self.bucket, Key=self.prefix + key, Body=data, IfNoneMatch="*", ChecksumAlgorithm="SHA256"
                )
                return True
            # Also after a conflict with another writer: once it has finished, the object is there.
            if self.head(key) is not None:
                return False
        raise infrastructure(f"S3 refused to write {uri_of(self, key)} {TRIES} times although it is not there")

    def list(self, prefix: str = "") -> list[StoredObject]:
        with self._errors("ListObjectsV2", prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            entries = [entry for page in pages for entry in page.get("Contents", [])]
        found = [StoredObject(entry["Key"].removeprefix(self.prefix), entry["Size"]) for entry in entries]
        return sorted((item for item in found if item.key), key=lambda item: item.key)

    def head(self, key: str) -> StoredObject | None:
        try:
            with self._errors("HeadObject", key):
                answer = self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)
        except NotFoundError:
            return None
        return StoredObject(key, answer["ContentLength"])

    def fingerprint(self, key: str) -> str:
        with self._errors("HeadObject", key):
            return self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)["ETag"].strip('"')

    def delete(self, key: str) -> None:
        with self._errors("DeleteObject", key, allowed=MISSING):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def verify(self, key: str, path: Path) -> None:
        with self._errors("HeadObject", key):
            answer = self.client.head_object(Bucket=self.bucket, Key=self.prefix + key, ChecksumMode="ENABLED")
        if answer["ContentLength"] != path.stat().st_size:
            raise damaged(uri_of(self, key))
        checksum = answer.get("ChecksumSHA256")
        # A server that keeps no checksums: read it back.
        same = checksum in possible_checksums(path) if checksum else self._digest(key) == sha256_of(path)
        if not same:
            raise damaged(uri_of(self, key))

    def _digest(self, key: str) -> str:
        digest = hashlib.sha256()
        with self._errors("GetObject", key):
            body = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"]
            for block in body.iter_chunks(1024 * 1024):
                digest.update(block)
        return digest.hexdigest()

    @contextmanager
    def _errors(self, operation: str, key: str, allowed: frozenset[str] = frozenset()) -> Iterator[None]:
        """What the SDK raises, in our words; error codes in `allowed` are passed over in silence."""
        uri = uri_of(self, key)
        try:
            yield
        except ClientError as error:
            code = error_code(error)
            if code in allowed:
                return
            if code in ("403", "404"):
                code = self._spelled_out(code)
            if code in MISSING:
                raise NotFoundError(uri, bucket_missing=code == "NoSuchBucket") from error
            raise self._failure(operation, uri, code, error) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            remedy = "Name a Secret in storage.credentialsSecretRef, or give the service account workload identity."
            raise denied(operation, uri, "there are no credentials", remedy) from error
        except (BotoCoreError, boto3.exceptions.Boto3Error) as error:
            raise infrastructure(f"S3 at {self._where()} does not answer: {error}") from error

    def _spelled_out(self, code: str) -> str:
        """The answer to a HEAD has no body that says why; that of a LIST tells wrong keys and a missing bucket."""
        try:
            self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
        except ClientError as error:
            reason = error_code(error)
            return reason if reason in BAD_KEYS or reason == "NoSuchBucket" else code
        return code

    def _failure(self, operation: str, uri: str, code: str, error: ClientError) -> RunError:
        if code not in DENIED:
            return infrastructure(f"S3 at {self._where()} failed {operation} on {uri}: {error}")
        who = self.access.credentials.source if self.access.credentials else "the pod's service account"
        return denied(operation, uri, code, f"Check the keys in {who}, and allow them {operation} on {uri}.")

    def _where(self) -> str:
        return self.access.endpoint or f"AWS {self.client.meta.region_name}"


def s3_client(access: StorageAccess) -> "S3Client":
    """A client with the credentials of `access`; it never asks the machine's metadata service."""
    session = botocore.session.Session()
    if access.credentials is not None:
        session.set_credentials(*read_keys(access.credentials))
    else:
        session.get_component("credential_provider").remove("iam-role")
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": TRIES},
        s3={"addressing_style": "path"} if access.endpoint else {},
    )
    return boto3.Session(botocore_session=session).client(
        "s3", endpoint_url=access.endpoint or None, region_name=access.region or "us-east-1", config=config
    )


def error_code(error: ClientError) -> str:
    """S3's word for what went wrong, or the HTTP status where it sent no word."""
    return error.response.get("Error", {}).get("Code", "")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def possible_checksums(path: Path) -> set[str]:
    """What S3 keeps as SHA-256 of the file: of the whole, or of its parts' digests with their number behind.

    Source: Amazon S3 User Guide, "Checking object integrity", full object and composite checksums.
    """
    with path.open("rb") as file:
        parts = [hashlib.sha256(part).digest() for part in iter(lambda: file.read(PART_BYTES), b"")]
    whole = base64.b64encode(bytes.fromhex(sha256_of(path))).decode()
    composite = base64.b64encode(hashlib.sha256(b"".join(parts)).digest()).decode()
    return {whole, composite, f"{composite}-{len(parts)}"}


def denied(operation: str, uri: str, why: str, remedy: str) -> RunError:
    """Somebody refused: what was tried, on what, and who can allow it."""
    return RunError(FailureClass.ACCESS_DENIED, "AccessDenied", f"{operation} on {uri} was denied: {why}", remedy)


def infrastructure(message: str) -> RunError:
    """Something that may go away by itself."""
    return RunError(FailureClass.INFRASTRUCTURE, "StorageUnavailable", one_line(message))


def damaged(uri: str) -> RunError:
    """What lies in the store is not what was written."""
    return RunError(FailureClass.INFRASTRUCTURE, "UploadDamaged", f"{uri} does not hold the bytes that were written")
