"""Stores: the same behaviour in a folder and in S3, and errors that say what to do."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_api.run import SecretFolder, StorageAccess
from finetune_trainer.credentials import required_secret
from finetune_trainer.errors import RunError
from finetune_trainer.s3_uploads import PART_BYTES
from finetune_trainer.store import FileStore, NotFoundError, Store, open_store, split_uri, uri_of

from tests.trainer.s3_access import an_access, make_bucket, some_keys

NOBODY = 65534
"""A user that owns nothing. Source: Debian Policy, 9.2.2."""

CLOSED = "http://127.0.0.1:9"
"""Nothing listens on the discard port."""


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A fresh, empty store of either kind."""
    if request.param == "file":
        return open_store(f"file://{tmp_path / 'store'}", StorageAccess())
    access = an_access(tmp_path, request.getfixturevalue("s3"))
    return open_store(f"s3://{make_bucket(access, 'stores')}/{tmp_path.name}", access)


def test_what_is_put_is_listed_found_and_read_back(store: Store, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 1000)
    store.put_bytes("a/one", b"1")
    store.put_file("a/two", tmp_path / "big")
    store.put_bytes("b", b"")
    assert [(item.key, item.size) for item in store.list()] == [("a/one", 1), ("a/two", 1000), ("b", 0)]
    assert [item.key for item in store.list("a/")] == ["a/one", "a/two"]
    assert store.get_bytes("a/one") == b"1"
    store.get_file("a/two", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"x" * 1000
    found = store.head("a/two")
    assert found is not None
    assert found.size == 1000


def test_what_is_missing_is_not_found(store: Store, tmp_path: Path) -> None:
    store.put_bytes("there", b"")
    assert store.head("nope") is None
    for read in (store.get_bytes, lambda key: store.get_file(key, tmp_path / "x"), store.fingerprint):
        with pytest.raises(NotFoundError, match="nope"):
            read("nope")


def test_what_is_deleted_is_gone_and_its_neighbours_are_not(store: Store) -> None:
    store.put_bytes("a/one", b"1")
    store.put_bytes("a/two", b"2")
    store.delete("a/one")
    store.delete("a/one")
    assert [item.key for item in store.list()] == ["a/two"]
    store.delete("a/two")
    assert store.list() == []


def test_only_the_first_put_if_absent_writes(store: Store) -> None:
    assert store.put_if_absent("manifest.json", b"first")
    assert not store.put_if_absent("manifest.json", b"second")
    assert store.get_bytes("manifest.json") == b"first"


def test_a_fingerprint_changes_with_the_content_alone(store: Store) -> None:
    store.put_bytes("a", b"1")
    first = store.fingerprint("a")
    store.put_bytes("a", b"1")
    assert store.fingerprint("a") == first
    store.put_bytes("a", b"2")
    assert store.fingerprint("a") != first


def test_verify_accepts_the_same_bytes_and_refuses_others(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    store.put_file("a", path)
    store.verify("a", path)
    for other in (b"12346", b"1234"):
        path.write_bytes(other)
        with pytest.raises(RunError, match="does not hold the bytes"):
            store.verify("a", path)


@pytest.mark.slow
def test_a_file_in_several_parts_is_verified_too(s3: Any, tmp_path: Path) -> None:
    access = an_access(tmp_path, s3)
    store, path = open_store(f"s3://{make_bucket(access, 'parts')}/x", access), tmp_path / "large"
    path.write_bytes(b"0123456789abcdef" * (PART_BYTES // 16) + b"tail")
    store.put_file("large", path)
    store.verify("large", path)
    with path.open("r+b") as file:
        file.write(b"X")
    with pytest.raises(RunError, match="does not hold the bytes"):
        store.verify("large", path)


def test_a_bucket_that_is_not_there_is_told_from_a_missing_object(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        open_store("s3://no-such-bucket-here/x", an_access(tmp_path, s3)).get_bytes("a")
    assert caught.value.bucket_missing


def test_a_bucket_to_write_to_that_is_not_there_is_told_with_what_to_do(s3: Any, tmp_path: Path) -> None:
    store = open_store("s3://no-such-bucket-here/x", an_access(tmp_path, s3))
    with pytest.raises(RunError, match="x/a cannot be written: there is no bucket no-such-bucket-here") as caught:
        store.put_bytes("a", b"1")
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "BucketNotFound")
    assert "Create the bucket" in caught.value.remedy


def test_wrong_keys_are_denied_naming_operation_uri_and_secret(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="GetObject on s3://models/x/a was denied: SignatureDoesNotMatch") as caught:
        open_store("s3://models/x", an_access(tmp_path, s3, secret_key="wrong")).get_bytes("a")
    assert (caught.value.failure_class, caught.value.reason) == ("AccessDenied", "AccessDenied")
    assert "Secret team-a/s3" in caught.value.remedy
    assert "wrong" not in caught.value.message + caught.value.remedy


@pytest.mark.parametrize("keys", [{"secret_key": "wrong"}, {"access_key": "nobody"}])
def test_wrong_keys_are_not_taken_for_a_missing_file(s3: Any, tmp_path: Path, keys: dict[str, str]) -> None:
    access = an_access(tmp_path, SimpleNamespace(**{**vars(s3), **keys}))
    with pytest.raises(RunError) as caught:
        open_store("s3://no-such-bucket-here/x", access).get_file("a", tmp_path / "a")
    assert caught.value.failure_class == "AccessDenied"


def test_a_missing_secret_or_key_is_named_before_any_call(tmp_path: Path) -> None:
    absent = SecretFolder(directory=str(tmp_path / "absent"), source="Secret team-a/s3")
    mounted = some_keys(tmp_path / "mounted")
    (tmp_path / "mounted" / "..data").mkdir()  # as the kubelet leaves an optional Secret that is not there
    partial = some_keys(tmp_path / "partial", AWS_ACCESS_KEY_ID="x")
    for folder, message in (
        (absent, "Secret team-a/s3 does not exist or is empty: key AWS_ACCESS_KEY_ID is needed"),
        (mounted, "Secret team-a/s3 does not exist or is empty: key AWS_ACCESS_KEY_ID is needed"),
        (partial, "Secret team-a/s3 has no key AWS_SECRET_ACCESS_KEY"),
    ):
        with pytest.raises(RunError) as caught:
            open_store("s3://models/x", StorageAccess(endpoint=CLOSED, credentials=folder))
        assert (caught.value.failure_class, caught.value.message) == ("AccessDenied", message)


def test_an_s3_that_does_not_answer_is_infrastructure(tmp_path: Path) -> None:
    keys = some_keys(tmp_path / "keys", AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="y")
    store = open_store("s3://models/x", StorageAccess(endpoint=CLOSED, credentials=keys))
    with pytest.raises(RunError, match=f"S3 at {CLOSED} does not answer") as caught:
        store.get_bytes("a")
    assert caught.value.failure_class == "Infrastructure"


def test_without_any_credentials_the_remedy_names_both_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(RunError, match="there are no credentials") as caught:
        open_store("s3://models/x", StorageAccess(endpoint=CLOSED)).get_bytes("a")
    assert caught.value.failure_class == "AccessDenied"
    assert "storage.credentialsSecretRef" in caught.value.remedy


@pytest.mark.parametrize("where", [{"endpoint": "minio"}, {"endpoint": "http://minio:90000"}, {"region": "a b"}])
def test_an_endpoint_or_region_that_is_none_is_refused(where: dict[str, str]) -> None:
    with pytest.raises(RunError, match=r"EndpointInvalid: storage\.endpoint or storage\.region cannot be used"):
        open_store("s3://models/x", StorageAccess(**where))


def test_another_kind_of_uri_is_refused() -> None:
    with pytest.raises(RunError, match="ftp://x is not readable"):
        open_store("ftp://x", StorageAccess())


def test_a_path_that_cannot_be_is_told_whatever_is_done_with_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    store = FileStore(tmp_path)
    for call, words in (
        (lambda: store.get_bytes("loop/x"), "a symbolic link leads to itself"),
        (lambda: store.head("n" * 300), "a name is too long"),
        (lambda: store.put_bytes("n" * 300, b""), "a name is too long"),
        (lambda: store.put_bytes("file/x", b""), "what is above it is no folder"),
        (lambda: FileStore(tmp_path / "file" / "deep").put_bytes("x", b""), "what is above it is no folder"),
        (lambda: FileStore(tmp_path.parent).put_bytes(tmp_path.name, b""), "it is a folder"),
        (lambda: FileStore(tmp_path.parent).delete(tmp_path.name), "it is a folder"),
        (lambda: open_store("file:///data\0/x", StorageAccess()), "holds a null"),
    ):
        with pytest.raises(RunError, match=words) as caught:
            call()
        assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "PathInvalid")
    assert FileStore(tmp_path / "file").list() == FileStore(tmp_path / "loop").list() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_the_system_refuses_is_denied_and_not_taken_for_nothing() -> None:
    with TemporaryDirectory() as folder:
        store = FileStore(Path(folder))
        os.seteuid(NOBODY)
        try:
            for call in (store.list, lambda: store.head("a"), lambda: store.get_bytes("a"), lambda: store.delete("a")):
                with pytest.raises(RunError, match=f"{folder}.* was denied: Permission denied"):
                    call()
            with pytest.raises(RunError, match=f"writing on file://{folder}/b was denied"):
                store.put_bytes("b", b"")
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("key", [b"hf_1\nhf_2", "hf_é".encode(), b"\xff"], ids=["lines", "letter", "bytes"])
def test_what_can_be_no_key_is_refused_and_not_shown(tmp_path: Path, key: bytes) -> None:
    (tmp_path / "HF_TOKEN").write_bytes(key)
    with pytest.raises(RunError, match="key HF_TOKEN of Secret a/b cannot be used") as caught:
        required_secret(SecretFolder(directory=str(tmp_path), source="Secret a/b"), "HF_TOKEN")
    assert (caught.value.failure_class, "hf_" in str(caught.value)) == ("AccessDenied", False)


def test_uris_are_joined_and_split(tmp_path: Path) -> None:
    assert split_uri("s3://bucket/a/b.jsonl") == ("s3://bucket/a", "b.jsonl")
    assert split_uri("s3://bucket/b.jsonl") == ("s3://bucket", "b.jsonl")
    assert uri_of(FileStore(tmp_path), "a/b") == f"file://{tmp_path}/a/b"
