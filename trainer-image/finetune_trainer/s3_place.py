"""One place in S3: how to reach it, and what goes wrong there in our words. The only module that imports boto3.

Credentials come from mounted files, never from the environment, unless the SDK's own chain was asked for (workload
identity).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from finetune_trainer.store import NotFoundError, StoredObject, denied, infrastructure

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Answer = TypeVar("Answer")
Words: TypeAlias = dict[str, Any]
"""Arguments of an S3 call; each has a type of its own there."""

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
WRITING = "PutObject"
"""The operation of every upload, whether in parts or not."""


class Place:
    """A prefix of a bucket. Keys are relative to it."""

    def __init__(self, bucket: str, prefix: str, access: StorageAccess) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.access = access
        self.client = s3_client(access)

    @property
    def where(self) -> str:
        """Whose S3 it is, for a message."""
        return self.access.endpoint or f"AWS {self.client.meta.region_name}"

    def target(self, key: str) -> Words:
        """How a call names one object."""
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    def head(self, key: str) -> StoredObject | None:
        """What is known of one object; None where there is none. Raises RunError."""
        try:
            with self.errors("HeadObject", key):
                answer = self.client.head_object(**self.target(key))
        except NotFoundError:
            return None
        return StoredObject(key, answer["ContentLength"])

    @contextmanager
    def errors(self, operation: str, key: str) -> Iterator[None]:
        """Inside, what the SDK raises becomes a NotFoundError or a RunError."""
        uri = f"{self.uri}/{key}" if key else self.uri
        try:
            yield
        except ClientError as error:
            code = error_code(error)
            if code in ("403", "404"):
                code = self._spelled_out(code)
            if operation == WRITING and code == "NoSuchBucket":
                raise _no_bucket(self.bucket, self.where, uri) from error
            if code in MISSING:
                raise NotFoundError(uri, bucket_missing=code == "NoSuchBucket") from error
            raise self._failure(operation, uri, code, error) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            remedy = "Name a Secret in storage.credentialsSecretRef, or give the service account workload identity."
            raise denied(operation, uri, "there are no credentials", remedy) from error
        except (BotoCoreError, boto3.exceptions.Boto3Error) as error:
            raise infrastructure(f"S3 at {self.where} does not answer: {error}") from error

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
            return infrastructure(f"S3 at {self.where} failed {operation} on {uri}: {error}")
        who = self.access.credentials.source if self.access.credentials else "the pod's service account"
        return denied(operation, uri, code, f"Check the keys in {who}, and allow them {operation} on {uri}.")


def _no_bucket(bucket: str, where: str, uri: str) -> RunError:
    """A bucket to write to does not come by itself, nor is one made: its name may be a slip."""
    message = f"{uri} cannot be written: there is no bucket {bucket} at {where}"
    remedy = "Create the bucket or correct output.uri, then create the Finetune again."
    return RunError(FailureClass.INVALID_CONFIG, "BucketNotFound", message, remedy)


def s3_client(access: StorageAccess) -> "S3Client":
    """A client with the credentials of `access`; it never asks the machine's metadata service.

    Raises RunError (InvalidConfig): AddressForbidden where the endpoint is one, EndpointInvalid where it is none.

    It adds no checksum by itself: over TLS that would be a trailer behind a chunked body, which many servers other than
    AWS's refuse. Ours are headers.
    """
    try:
        check_endpoint(access.endpoint)
        return _client(access)
    except ValueError as error:
        message = f"storage.endpoint or storage.region cannot be used: {error}"
        remedy = "Write the endpoint as http(s)://HOST[:PORT]."
        raise RunError(FailureClass.INVALID_CONFIG, "EndpointInvalid", message, remedy) from error


def _client(access: StorageAccess) -> "S3Client":
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
def unless(*codes: str) -> Iterator[None]:
    """Inside, errors with these codes mean that there is nothing to do."""
    try:
        yield
    except ClientError as error:
        if error_code(error) not in codes:
            raise


def tried(call: Callable[[], Answer]) -> Answer:
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
