"""versitygw as a process: the S3 behaviours that the trainer relies on, asked of the real thing."""

from pathlib import Path

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from mypy_boto3_s3 import S3Client

from tests.cluster.s3 import S3, s3_manifest


def client(server: S3, secret_key: str | None = None) -> S3Client:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=secret_key or server.secret_key,
        region_name=server.region,
    )


@pytest.fixture(scope="module")
def bucket(s3: S3) -> str:
    client(s3).create_bucket(Bucket="local-cluster-tests")
    return "local-cluster-tests"


def test_an_object_comes_back_as_it_was_put(s3: S3, bucket: str) -> None:
    client(s3).put_object(Bucket=bucket, Key="a/b.bin", Body=b"\0content")
    assert client(s3).get_object(Bucket=bucket, Key="a/b.bin")["Body"].read() == b"\0content"


def test_only_the_first_conditional_put_wins(s3: S3, bucket: str) -> None:
    client(s3).put_object(Bucket=bucket, Key="manifest.json", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client(s3).put_object(Bucket=bucket, Key="manifest.json", Body=b"second", IfNoneMatch="*")
    assert client(s3).get_object(Bucket=bucket, Key="manifest.json")["Body"].read() == b"first"


def test_a_wrong_secret_key_is_refused(s3: S3, bucket: str) -> None:
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client(s3, secret_key="wrong").list_objects_v2(Bucket=bucket)


def test_the_manifest_holds_the_image_and_no_placeholder() -> None:
    text = s3_manifest("localhost/versitygw:abc")
    kinds = [document["kind"] for document in yaml.safe_load_all(text)]
    assert kinds == ["Namespace", "Secret", "Deployment", "Service"]
    assert 'image: "localhost/versitygw:abc"' in text
    assert "${" not in text.partition("\n")[2]


def test_the_process_keeps_its_files_in_its_folder(
    s3: S3, bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    client(s3).put_object(Bucket=bucket, Key="where.txt", Body=b"here")
    below: Path = tmp_path_factory.getbasetemp()
    assert [path.read_bytes() for path in below.glob(f"s3[0-9]*/data/{bucket}/where.txt")] == [b"here"]
