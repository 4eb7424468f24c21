"""The user's side of S3: base model and rows in, artifact out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.cluster.problem import ClusterProblem
from tests.cluster.s3 import S3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "finetune"
"""finetune.yaml names it."""


class Bucket:
    """One bucket of an S3, made if it is not there."""

    def __init__(self, access: S3) -> None:
        """Raises ClusterProblem when S3 does not answer."""
        self._client: S3Client = boto3.client(
            "s3",
            endpoint_url=access.endpoint,
            aws_access_key_id=access.access_key,
            aws_secret_access_key=access.secret_key,
            region_name=access.region,
            config=Config(connect_timeout=5, retries={"mode": "standard", "max_attempts": 5}),
        )
        try:
            if BUCKET not in [bucket["Name"] for bucket in self._client.list_buckets()["Buckets"]]:
                self._client.create_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError) as error:
            raise ClusterProblem(
                f"S3 at {access.endpoint} does not answer: {error}. Look at: kubectl logs -n s3 deployment/versitygw"
            ) from error

    def upload(self, path: Path, key: str) -> None:
        """A file, or all files of a folder below `key`."""
        files = {f"{key}/{file.name}": file for file in path.iterdir()} if path.is_dir() else {key: path}
        for name, file in files.items():
            self._client.upload_file(str(file), BUCKET, name)

    def read_lines(self, uri: str) -> list[dict[str, Any]]:
        """The rows of a JSON Lines object."""
        body = self._client.get_object(Bucket=BUCKET, Key=self._key(uri))["Body"].read()
        return [json.loads(text) for text in body.decode().split("\n") if text.strip()]

    def sizes(self, uri: str) -> dict[str, int]:
        """Names below a URI, and their bytes."""
        prefix = self._key(uri).rstrip("/") + "/"
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        found = (item for page in pages for item in page.get("Contents", []))
        return {item["Key"].removeprefix(prefix): item["Size"] for item in found}

    def _key(self, uri: str) -> str:
        return uri.removeprefix(f"s3://{BUCKET}/")
