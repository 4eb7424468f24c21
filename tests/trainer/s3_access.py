"""Access to the real S3 server of the tests, as the trainer gets it: keys in a mounted folder, and a bucket."""

from pathlib import Path
from typing import Any

from finetune_api.run import SecretFolder, StorageAccess
from finetune_trainer.s3_place import s3_client


def some_keys(folder: Path, **keys: str) -> SecretFolder:
    """A folder as the kubelet mounts a Secret: one file for each key."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in keys.items():
        (folder / name).write_text(value + "\n")
    return SecretFolder(directory=str(folder), source="Secret team-a/s3")


def an_access(tmp_path: Path, s3: Any, secret_key: str | None = None) -> StorageAccess:
    """The server's own keys, or a wrong secret one."""
    keys = some_keys(
        tmp_path / "keys", AWS_ACCESS_KEY_ID=s3.access_key, AWS_SECRET_ACCESS_KEY=secret_key or s3.secret_key
    )
    return StorageAccess(endpoint=s3.endpoint, region=s3.region, credentials=keys)


def make_bucket(access: StorageAccess, name: str) -> str:
    """Its name, also when it is there already."""
    client = s3_client(access)
    if name not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=name)
    return name
