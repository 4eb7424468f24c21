"""Uploads to one place in S3: whole or in parts, each with a checksum that the server compares."""

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from finetune_api.names import FailureClass
from finetune_api.output import Checksums

from finetune_trainer.errors import RunError
from finetune_trainer.s3_place import (
    CONFLICT,
    DAMAGED_ON_THE_WAY,
    DENIED,
    NOT_IMPLEMENTED,
    Answer,
    Place,
    Words,
    error_code,
    tried,
)
from finetune_trainer.store import sha256_of

PART_BYTES = 16 * 1024 * 1024
"""Larger files are uploaded in parts of this size."""

MOST_PARTS = 10_000
"""Parts of one upload; larger files have larger parts. Source: Amazon S3 User Guide, "Multipart upload limits"."""

PARALLEL_PARTS = 4
"""Parts in flight, each of them in memory."""


class Uploads:
    """Writes objects of one place; what the SDK raises is its caller's to translate.

    Files above `part_bytes` go in parts.
    """

    def __init__(self, place: Place, part_bytes: int = PART_BYTES) -> None:
        self.has_checksums = place.access.checksums is not Checksums.NEVER
        """Whether the server keeps them, as far as is known by now."""
        self._place = place
        self._client = place.client
        self._part_bytes = part_bytes

    def put(self, key: str, data: bytes, **conditions: Any) -> None:
        """Write one object, under the conditions of the call."""

        def put(**checksum: Any) -> object:
            return self._client.put_object(**self._place.target(key), Body=data, **checksum, **conditions)

        self._with_checksum(put, {"ChecksumSHA256": _checksum(data)})

    def put_file(self, key: str, path: Path) -> None:
        """Write one object from a file, in parts where it is large."""
        size = path.stat().st_size
        if size <= self._part_bytes:
            self.put(key, path.read_bytes())
        else:
            self._put_parts(key, path, size)

    def put_where_nothing_is(self, key: str, data: bytes) -> bool:
        """Whether this call wrote the object. A server without conditional writes is asked first, which leaves a gap
        between question and answer; `publish` finds such a server out and looks again afterwards."""
        try:
            self.put(key, data, IfNoneMatch="*")
        except ClientError as error:
            if error_code(error) in CONFLICT:
                return False
            if error_code(error) not in NOT_IMPLEMENTED:
                raise
            if self._place.head(key) is not None:
                return False
            self.put(key, data)
        return True

    def _put_parts(self, key: str, path: Path, size: int) -> None:
        """All or nothing: parts go side by side, each with tries of its own; what is given up leaves no part behind."""
        target = self._place.target(key)

        def create(**algorithm: Any) -> str:
            return self._client.create_multipart_upload(**target, **algorithm)["UploadId"]

        target["UploadId"] = self._with_checksum(create, {"ChecksumAlgorithm": "SHA256"})
        try:
            starts = range(0, size, self._part_size(size))
            with _finishing(ThreadPoolExecutor(PARALLEL_PARTS)) as pool:
                parts = list(pool.map(lambda at: self._put_part(target, path, at, starts), starts))
            self._complete(target, key, parts, size)
        except BaseException:  # Also SIGTERM: a bucket bills for parts that nobody sees.
            # What cannot be aborted now falls to the bucket's own rule; the first error is the one to tell.
            with suppress(ClientError, BotoCoreError):
                self._client.abort_multipart_upload(**target)
            raise

    def _put_part(self, target: Words, path: Path, at: int, starts: range) -> Words:
        with path.open("rb") as file:
            file.seek(at)
            data = file.read(starts.step)
        number = starts.index(at) + 1
        checksum: Words = {"ChecksumSHA256": _checksum(data)} if self.has_checksums else {}
        answer = tried(lambda: self._client.upload_part(**target, PartNumber=number, Body=data, **checksum))
        return {"PartNumber": number, "ETag": answer["ETag"], **checksum}

    def _complete(self, target: Words, key: str, parts: Sequence[Words], size: int) -> None:
        upload: Any = {"Parts": parts}
        try:
            self._client.complete_multipart_upload(**target, MultipartUpload=upload)
        except ClientError as error:
            # Tried again after a lost answer: the upload is no more because it became the object.
            found = self._place.head(key) if error_code(error) == "NoSuchUpload" else None
            if found is None or found.size != size:
                raise

    def _with_checksum(self, call: Callable[..., Answer], checksum: Words) -> Answer:
        """`call(**checksum)`; without it from then on where the server refuses it and `storage.checksums` is `auto`.

        A server need not say what it refuses: if the same call passes without the checksum, that was it.
        """
        if not self.has_checksums:
            return tried(call)
        try:
            return tried(lambda: call(**checksum))
        except ClientError as error:
            if not _may_be_the_checksum(error):
                raise
            if self._place.access.checksums is Checksums.ALWAYS:
                raise self._checksums_refused(error) from error
            answer = tried(call)
            self.has_checksums = False
            return answer

    def _checksums_refused(self, error: ClientError) -> RunError:
        message = f"S3 at {self._place.where} refused an upload with a SHA-256 checksum: {error}"
        remedy = "Set storage.checksums to auto or never, if this server knows no checksums."
        return RunError(FailureClass.INVALID_CONFIG, "ChecksumsRefused", message, remedy)

    def _part_size(self, size: int) -> int:
        return max(self._part_bytes, -(-size // MOST_PARTS))

    def possible_checksums(self, path: Path) -> set[str]:
        """What S3 keeps as SHA-256 of the file: of the whole, or of its parts' digests with their number behind.

        Source: Amazon S3 User Guide, "Checking object integrity", full object and composite checksums.
        """
        step = self._part_size(path.stat().st_size)
        with path.open("rb") as file:
            parts = [hashlib.sha256(part).digest() for part in iter(lambda: file.read(step), b"")]
        whole = base64.b64encode(bytes.fromhex(sha256_of(path))).decode()
        composite = _checksum(b"".join(parts))
        return {whole, composite, f"{composite}-{len(parts)}"}


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
