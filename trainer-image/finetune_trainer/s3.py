"""Objects in S3. The only module that imports boto3.

Credentials come from mounted files, never from the environment, unless the SDK's own chain was asked for (workload
identity). Nothing is believed to be stored because a call came back: `verify` compares what lies there.
"""

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import boto3
import boto3.exceptions
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from finetune_api.names import FailureClass
from finetune_api.output import Checksums
from finetune_api.run import StorageAccess

from finetune_trainer.credentials import read_keys
from finetune_trainer.errors import RunError
from finetune_trainer.reach import check_endpoint
from finetune_trainer.store import NotFoundError, StoredObject, damaged, denied, infrastructure, sha256_of, uri_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Answer = TypeVar("Answer")
Words: TypeAlias = dict[str, Any]
"""Arguments of an S3 call; each has a type of its own there."""


PART_BYTES = 16 * 1024 * 1024
"""Larger files are uploaded in parts of this size."""

MOST_PARTS = 10_000
"""Parts of one upload; larger files have larger parts. Source: Amazon S3 User Guide, "Multipart upload limits"."""

PARALLEL_PARTS = 4
"""Parts in flight, each of them in memory."""

TRIES = 5
"""Calls per operation in all; the SDK waits longer before each (its standard mode)."""

WAIT_SECONDS = 0.2
"""Wait before bytes that were damaged on the way go a second time; each further wait is twice as long."""

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
    "TokenRefreshRequired",
    "Forbidden",
}
MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "NotFound", "404"})
CONFLICT = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
DAMAGED_ON_THE_WAY = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"})
"""The server got other bytes than were sent, and kept nothing."""
NOT_IMPLEMENTED = frozenset({"NotImplemented", "501"})
"""The server does not know a header that was sent."""


class S3Store:
    """Objects below one prefix of one bucket. Files above `part_bytes` go in parts."""

    def __init__(self, bucket: str, prefix: str, access: StorageAccess, part_bytes: int = PART_BYTES) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.access = access
        self.part_bytes = part_bytes
        self.client = s3_client(access)
        self._checksums = access.checksums is not Checksums.NEVER

    def get_bytes(self, key: str) -> bytes:
        with self._errors("GetObject", key):
            return _tried(lambda: self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].read())

    def get_file(self, key: str, path: Path) -> None:
        with self._errors("GetObject", key):
            self.client.download_file(self.bucket, self.prefix + key, str(path))

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._errors("PutObject", key):
            self._put(key, data)

    def put_file(self, key: str, path: Path) -> None:
        size = path.stat().st_size
        with self._errors("PutObject", key):
            if size <= self.part_bytes:
                self._put(key, path.read_bytes())
            else:
                self._put_parts(key, path, size)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        for _ in range(TRIES):
            with self._errors("PutObject", key):
                if self._put_where_nothing_is(key, data):
                    return True
            # Also after a conflict with another writer: once it has finished, the object is there.
            if self.head(key) is not None:
                return False
        raise infrastructure(f"S3 refused to write {uri_of(self, key)} {TRIES} times although it is not there")

    def keeps_what_is_there(self, key: str, data: bytes) -> bool:
        with self._errors("PutObject", key):
            try:
                self._put(key, data, IfNoneMatch="*")
            except ClientError as error:
                if error_code(error) not in CONFLICT | NOT_IMPLEMENTED:
                    raise
                return error_code(error) in CONFLICT
        return False

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

    def delete(self, key: str) -> None:
        with suppress(NotFoundError), self._errors("DeleteObject", key):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def abort_uploads(self) -> int:
        with self._errors("ListMultipartUploads", ""):
            uploads = self._uploads()
        for key, upload in uploads:
            with self._errors("AbortMultipartUpload", key.removeprefix(self.prefix)), _unless("NoSuchUpload"):
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
        return len(uploads)

    def _uploads(self) -> Sequence[tuple[str, str]]:
        """Key and id of each upload that is not finished; none on a server that cannot tell."""
        pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.prefix)
        with _unless(*NOT_IMPLEMENTED):
            return [(upload["Key"], upload["UploadId"]) for page in pages for upload in page.get("Uploads", [])]
        return []

    def fingerprint(self, key: str) -> str:
        with self._errors("HeadObject", key):
            return self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)["ETag"].strip('"')

    def verify(self, key: str, path: Path) -> None:
        with self._errors("HeadObject", key):
            answer = self.client.head_object(Bucket=self.bucket, Key=self.prefix + key, ChecksumMode="ENABLED")
        if answer["ContentLength"] != path.stat().st_size:
            raise damaged(uri_of(self, key))
        checksum = answer.get("ChecksumSHA256") if self._checksums else None
        # A server that keeps no checksums: read it back.
        same = checksum in self._possible_checksums(path) if checksum else self._digest(key) == sha256_of(path)
        if not same:
            raise damaged(uri_of(self, key))

    def _put(self, key: str, data: bytes, **conditions: Any) -> None:
        def put(**checksum: Any) -> object:
            return self.client.put_object(
                Bucket=self.bucket,
                Key=self.prefix + key,
                Body=data,
                **checksum,
                **conditions,
            )

        self._with_checksum(put, {"ChecksumSHA256": _checksum(data)})

    def _put_where_nothing_is(self, key: str, data: bytes) -> bool:
        """Whether this call wrote the object. A server without conditional writes is asked first, which leaves a gap
        between question and answer; `publish` finds such a server out and looks again afterwards."""
        try:
            self._put(key, data, IfNoneMatch="*")
        except ClientError as error:
            if error_code(error) in CONFLICT:
                return False
            if error_code(error) not in NOT_IMPLEMENTED:
                raise
            if self.head(key) is not None:
                return False
            self._put(key, data)
        return True

    def _put_parts(self, key: str, path: Path, size: int) -> None:
        """All or nothing: parts go side by side, each with tries of its own; what is given up leaves no part behind."""
        target: Words = {"Bucket": self.bucket, "Key": self.prefix + key}

        def create(**algorithm: Any) -> str:
            return self.client.create_multipart_upload(**target, **algorithm)["UploadId"]

        target["UploadId"] = self._with_checksum(create, {"ChecksumAlgorithm": "SHA256"})
        try:
            starts = range(0, size, self._part_size(size))
            with _finishing(ThreadPoolExecutor(PARALLEL_PARTS)) as pool:
                parts = list(pool.map(lambda at: self._put_part(target, path, at, starts), starts))
            self._complete(target, key, parts, size)
        except BaseException:  # Also SIGTERM: a bucket bills for parts that nobody sees.
            # What cannot be aborted now falls to the bucket's own rule; the first error is the one to tell.
            with suppress(ClientError, BotoCoreError):
                self.client.abort_multipart_upload(**target)
            raise

    def _put_part(self, target: Words, path: Path, at: int, starts: range) -> Words:
        with path.open("rb") as file:
            file.seek(at)
            data = file.read(starts.step)
        number = starts.index(at) + 1
        checksum: Words = {"ChecksumSHA256": _checksum(data)} if self._checksums else {}
        answer = _tried(lambda: self.client.upload_part(**target, PartNumber=number, Body=data, **checksum))
        return {"PartNumber": number, "ETag": answer["ETag"], **checksum}

    def _complete(self, target: Words, key: str, parts: Sequence[Words], size: int) -> None:
        upload: Any = {"Parts": parts}
        try:
            self.client.complete_multipart_upload(**target, MultipartUpload=upload)
        except ClientError as error:
            # Tried again after a lost answer: the upload is no more because it became the object.
            found = self.head(key) if error_code(error) == "NoSuchUpload" else None
            if found is None or found.size != size:
                raise

    def _with_checksum(self, call: Callable[..., Answer], checksum: Words) -> Answer:
        """`call(**checksum)`; without it from then on where the server refuses it and `storage.checksums` is `auto`.

        A server need not say what it refuses: if the same call passes without the checksum, that was it.
        """
        if not self._checksums:
            return _tried(call)
        try:
            return _tried(lambda: call(**checksum))
        except ClientError as error:
            if not _may_be_the_checksum(error):
                raise
            if self.access.checksums is Checksums.ALWAYS:
                raise self._checksums_refused(error) from error
            answer = _tried(call)
            self._checksums = False
            return answer

    def _checksums_refused(self, error: ClientError) -> RunError:
        message = f"S3 at {self._where()} refused an upload with a SHA-256 checksum: {error}"
        remedy = "Set storage.checksums to auto or never, if this server knows no checksums."
        return RunError(FailureClass.INVALID_CONFIG, "ChecksumsRefused", message, remedy)

    def _part_size(self, size: int) -> int:
        return max(self.part_bytes, -(-size // MOST_PARTS))

    def _possible_checksums(self, path: Path) -> set[str]:
        """What S3 keeps as SHA-256 of the file: of the whole, or of its parts' digests with their number behind.

        Source: Amazon S3 User Guide, "Checking object integrity", full object and composite checksums.
        """
        step = self._part_size(path.stat().st_size)
        with path.open("rb") as file:
            parts = [hashlib.sha256(part).digest() for part in iter(lambda: file.read(step), b"")]
        whole = base64.b64encode(bytes.fromhex(sha256_of(path))).decode()
        composite = _checksum(b"".join(parts))
        return {whole, composite, f"{composite}-{len(parts)}"}

    def _digest(self, key: str) -> str:
        def read() -> str:
            digest = hashlib.sha256()
            body = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"]
            for block in body.iter_chunks(1024 * 1024):
                digest.update(block)
            return digest.hexdigest()

        with self._errors("GetObject", key):
            return _tried(read)

    @contextmanager
    def _errors(self, operation: str, key: str) -> Iterator[None]:
        """What the SDK raises, in our words."""
        uri = uri_of(self, key)
        try:
            yield
        except ClientError as error:
            code = error_code(error)
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
    """A client with the credentials of `access`; it never asks the machine's metadata service.

    Raises RunError (InvalidConfig, AddressForbidden) where the endpoint is one.

    It adds no checksum by itself: over TLS that would be a trailer behind a chunked body, which many servers other than
    AWS's refuse. Ours are headers.
    """
    check_endpoint(access.endpoint)
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
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required" if access.checksums is Checksums.NEVER else "when_supported",
    )
    return boto3.Session(botocore_session=session).client(
        "s3", endpoint_url=access.endpoint or None, region_name=access.region or "us-east-1", config=config
    )


def error_code(error: ClientError) -> str:
    """S3's word for what went wrong, or the HTTP status where it sent no word."""
    return error.response.get("Error", {}).get("Code", "")


@contextmanager
def _unless(*codes: str) -> Iterator[None]:
    """Inside, errors with these codes mean that there is nothing to do."""
    try:
        yield
    except ClientError as error:
        if error_code(error) not in codes:
            raise


def _tried(call: Callable[[], Answer]) -> Answer:
    """The call's answer; tried again where bytes were damaged or cut on the way, which the SDK's retries leave out."""
    for attempt in range(TRIES - 1):
        try:
            return call()
        except (ResponseStreamingError, FlexibleChecksumError):
            pass
        except ClientError as error:
            if error_code(error) not in DAMAGED_ON_THE_WAY:
                raise
        time.sleep(WAIT_SECONDS * 2**attempt)
    return call()


def _may_be_the_checksum(error: ClientError) -> bool:
    """400 and 501 are what servers say to a header that they do not know."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status in (400, 501) and error_code(error) not in DENIED | DAMAGED_ON_THE_WAY


def _checksum(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


@contextmanager
def _finishing(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """Leave only when no call is in flight, and begin no further one after a failure."""
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
