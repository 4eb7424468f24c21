"""Objects in S3. Nothing is believed to be stored because a call came back: `verify` compares what lies there."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from botocore.exceptions import ClientError
from finetune_api.run import StorageAccess

from finetune_trainer.s3_place import CONFLICT, NOT_IMPLEMENTED, TRIES, WRITING, Place, error_code, tried, unless
from finetune_trainer.s3_uploads import PART_BYTES, Uploads
from finetune_trainer.store import NotFoundError, StoredObject, damaged, infrastructure, sha256_of, uri_of


class S3Store:
    """The objects of one place. Files above `part_bytes` go in parts."""

    def __init__(self, bucket: str, prefix: str, access: StorageAccess, part_bytes: int = PART_BYTES) -> None:
        self.place = Place(bucket, prefix, access)
        self.uri = self.place.uri
        self._client = self.place.client
        self._uploads = Uploads(self.place, part_bytes)

    def get_bytes(self, key: str) -> bytes:
        with self.place.errors("GetObject", key):
            return tried(lambda: self._client.get_object(**self.place.target(key))["Body"].read())

    def get_file(self, key: str, path: Path) -> None:
        with self.place.errors("GetObject", key):
            self._client.download_file(self.place.bucket, self.place.prefix + key, str(path))

    def put_bytes(self, key: str, data: bytes) -> None:
        with self.place.errors(WRITING, key):
            self._uploads.put(key, data)

    def put_file(self, key: str, path: Path) -> None:
        with self.place.errors(WRITING, key):
            self._uploads.put_file(key, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        for _ in range(TRIES):
            with self.place.errors(WRITING, key):
                if self._uploads.put_where_nothing_is(key, data):
                    return True
            # Also after a conflict with another writer: once it has finished, the object is there.
            if self.head(key) is not None:
                return False
        raise infrastructure(f"S3 refused to write {uri_of(self, key)} {TRIES} times although it is not there")

    def keeps_what_is_there(self, key: str, data: bytes) -> bool:
        with self.place.errors(WRITING, key):
            try:
                self._uploads.put(key, data, IfNoneMatch="*")
            except ClientError as error:
                if error_code(error) not in CONFLICT | NOT_IMPLEMENTED:
                    raise
                return error_code(error) in CONFLICT
        return False

    def list(self, prefix: str = "") -> list[StoredObject]:
        with self.place.errors("ListObjectsV2", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.place.bucket, Prefix=self.place.prefix + prefix
            )
            entries = [entry for page in pages for entry in page.get("Contents", [])]
        found = [StoredObject(entry["Key"].removeprefix(self.place.prefix), entry["Size"]) for entry in entries]
        return sorted((item for item in found if item.key), key=lambda item: item.key)

    def head(self, key: str) -> StoredObject | None:
        return self.place.head(key)

    def delete(self, key: str) -> None:
        with suppress(NotFoundError), self.place.errors("DeleteObject", key):
            self._client.delete_object(**self.place.target(key))

    def abort_uploads(self) -> int:
        with self.place.errors("ListMultipartUploads", ""):
            uploads = self._unfinished()
        for key, upload in uploads:
            with self.place.errors("AbortMultipartUpload", key.removeprefix(self.place.prefix)), unless("NoSuchUpload"):
                self._client.abort_multipart_upload(Bucket=self.place.bucket, Key=key, UploadId=upload)
        return len(uploads)

    def _unfinished(self) -> Sequence[tuple[str, str]]:
        """Key and id of each upload that is not finished; none on a server that cannot tell."""
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self.place.bucket, Prefix=self.place.prefix
        )
        with unless(*NOT_IMPLEMENTED):
            return [(upload["Key"], upload["UploadId"]) for page in pages for upload in page.get("Uploads", [])]
        return []

    def fingerprint(self, key: str) -> str:
        with self.place.errors("HeadObject", key):
            return self._client.head_object(**self.place.target(key))["ETag"].strip('"')

    def verify(self, key: str, path: Path) -> None:
        with self.place.errors("HeadObject", key):
            answer = self._client.head_object(**self.place.target(key), ChecksumMode="ENABLED")
        if answer["ContentLength"] != path.stat().st_size:
            raise damaged(uri_of(self, key))
        checksum = answer.get("ChecksumSHA256") if self._uploads.has_checksums else None
        # A server that keeps no checksums: read it back.
        same = checksum in self._uploads.possible_checksums(path) if checksum else self._digest(key) == sha256_of(path)
        if not same:
            raise damaged(uri_of(self, key))

    def _digest(self, key: str) -> str:
        def read() -> str:
            digest = hashlib.sha256()
            body = self._client.get_object(**self.place.target(key))["Body"]
            for block in body.iter_chunks(1024 * 1024):
                digest.update(block)
            return digest.hexdigest()

        with self.place.errors("GetObject", key):
            return tried(read)
