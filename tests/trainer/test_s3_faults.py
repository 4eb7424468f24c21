"""Storage that fails: tries are bounded, the class is right, and there is never a manifest over bytes that differ."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_api.names import MANIFEST_FILE, Stage
from finetune_api.output import Checksums
from finetune_api.run import RunResult, RunSpec, StorageAccess
from finetune_trainer.errors import RunError
from finetune_trainer.publish import existing_result, publish
from finetune_trainer.s3 import S3Store
from finetune_trainer.s3_place import TRIES

from tests.trainer.faulty_s3 import FOREVER, FakeS3, Fault, FaultyProxy, Habits
from tests.trainer.runs import a_run, an_artifact
from tests.trainer.s3_access import an_access, make_bucket
from tests.trainer.serving import serving

RESULT = RunResult(stage=Stage.TRAIN)
WRITER = "0123456789"
SMALL_PART = 5 * 1024 * 1024
"""The smallest part that S3 takes."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK waits seconds between its tries."""
    really = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: really(min(seconds, 0.01)))


@pytest.fixture
def proxy(s3: Any) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(s3.endpoint)
    with serving(proxy):
        yield proxy


@pytest.fixture(scope="module")
def bucket(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bucket of the real server."""
    return make_bucket(an_access(tmp_path_factory.mktemp("keys"), s3), "faults")


@pytest.fixture
def store(proxy: FaultyProxy, s3: Any, bucket: str, tmp_path: Path) -> S3Store:
    """An empty prefix, behind the proxy."""
    access = an_access(tmp_path, SimpleNamespace(**{**vars(s3), "endpoint": proxy.endpoint}))
    return S3Store(bucket, f"{tmp_path.name}/run", access, SMALL_PART)


@pytest.fixture
def run(tmp_path: Path) -> RunSpec:
    return a_run(tmp_path, "hf://a/b", [{"name": "d", "uri": "s3://b/d.jsonl"}])


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return an_artifact(tmp_path)


def a_large_file(tmp_path: Path) -> Path:
    """Three parts, the last one short."""
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (2 * SMALL_PART // 256) + b"tail")
    return path


def published(store: S3Store, run: RunSpec, artifact: Path) -> RunResult:
    return publish(store, run, artifact, WRITER, "adapter", RESULT)


def has_whole_manifest(store: S3Store, artifact: Path) -> bool:
    """Whether there is a manifest; each file it names then is what was to be published."""
    if store.head(MANIFEST_FILE) is None:
        return False
    manifest = json.loads(store.get_bytes(MANIFEST_FILE))
    folder = manifest["uri"].removeprefix(store.uri + "/")
    for file in manifest["files"]:
        assert store.get_bytes(f"{folder}/{file['name']}") == (artifact / file["name"]).read_bytes()
    return True


PASSING = {
    "500": Fault("PUT", "/run/", 2, status=500),
    "SlowDown": Fault("PUT", "/run/", 2, status=503, code="SlowDown"),
    "request cut at once": Fault("PUT", "safetensors", cut_request_at=0),
    "request cut in the middle": Fault("PUT", "safetensors", cut_request_at=1000),
    "byte flipped on the way": Fault("PUT", "safetensors", flip_request=True),
    "byte of the manifest flipped": Fault("PUT", MANIFEST_FILE, flip_request=True),
    "answer lost": Fault("PUT", "safetensors", cut_answer_at=0),
    "manifest's answer lost": Fault("PUT", MANIFEST_FILE, cut_answer_at=0),
    "check fails": Fault("HEAD", "safetensors", 2, status=500),
    "manifest read back in part": Fault("GET", MANIFEST_FILE, cut_answer_at=20),
    "manifest read back wrong": Fault("GET", MANIFEST_FILE, flip_answer=True),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_is_survived(
    name: str, store: S3Store, proxy: FaultyProxy, run: RunSpec, artifact: Path
) -> None:
    fault = PASSING[name]
    proxy.faults = [Fault(**vars(fault))]
    result = published(store, run, artifact)
    assert proxy.faults[0].times == 0, "the fault came"
    assert has_whole_manifest(store, artifact)
    assert existing_result(store, run) == result


LASTING = {
    "500": (Fault("PUT", "safetensors", FOREVER, status=500), "Infrastructure"),
    "SlowDown": (Fault("PUT", "README", FOREVER, status=503, code="SlowDown"), "Infrastructure"),
    "request cut": (Fault("PUT", "safetensors", FOREVER, cut_request_at=1000), "Infrastructure"),
    "byte flipped": (Fault("PUT", "safetensors", FOREVER, flip_request=True), "Infrastructure"),
    "manifest refused": (Fault("PUT", MANIFEST_FILE, FOREVER, status=500), "Infrastructure"),
    "expired credentials": (Fault("PUT", "safetensors", FOREVER, status=400, code="ExpiredToken"), "AccessDenied"),
    "no permission": (Fault("PUT", "safetensors", FOREVER, status=403, code="AccessDenied"), "AccessDenied"),
}


@pytest.mark.parametrize("name", LASTING)
def test_a_fault_that_lasts_ends_in_its_class_without_a_manifest(
    name: str, store: S3Store, proxy: FaultyProxy, run: RunSpec, artifact: Path
) -> None:
    fault, failure_class = LASTING[name]
    proxy.faults = [Fault(**vars(fault))]
    with pytest.raises(RunError) as caught:
        published(store, run, artifact)
    assert caught.value.failure_class == failure_class
    tries = FOREVER - proxy.faults[0].times
    assert tries <= TRIES * TRIES if failure_class == "Infrastructure" else tries == 1
    proxy.faults = []
    assert not has_whole_manifest(store, artifact)


def test_a_large_file_goes_in_parts_and_a_failing_part_alone_goes_again(
    store: S3Store, proxy: FaultyProxy, tmp_path: Path
) -> None:
    path = a_large_file(tmp_path)
    proxy.faults = [
        Fault("PUT", "partNumber=2", 2, status=500),
        Fault("PUT", "partNumber=1", cut_request_at=70_000),
        Fault("PUT", "partNumber=3", flip_request=True),
    ]
    store.put_file("large", path)
    store.verify("large", path)
    sent = [at for method, at in proxy.calls if method == "PUT"]
    assert [sum(f"partNumber={number}" in at for at in sent) for number in (1, 2, 3)] == [2, 3, 2]


def test_a_completed_upload_whose_answer_was_lost_is_found(store: S3Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    path = a_large_file(tmp_path)
    proxy.faults = [Fault("POST", "uploadId=", cut_answer_at=0)]
    store.put_file("large", path)
    store.verify("large", path)


def test_a_given_up_upload_leaves_neither_object_nor_parts(store: S3Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.faults = [Fault("PUT", "partNumber=2", FOREVER, status=500)]
    with pytest.raises(RunError) as caught:
        store.put_file("large", a_large_file(tmp_path))
    assert caught.value.failure_class == "Infrastructure"
    assert store.head("large") is None
    assert "Uploads" not in store.place.client.list_multipart_uploads(Bucket="faults", Prefix=store.place.prefix)


def test_an_upload_that_is_interrupted_leaves_no_parts(
    store: S3Store, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.place.client, "complete_multipart_upload", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put_file("large", a_large_file(tmp_path))
    assert "Uploads" not in store.place.client.list_multipart_uploads(Bucket="faults", Prefix=store.place.prefix)


def test_an_answer_that_is_cut_or_damaged_is_asked_for_again(store: S3Store, proxy: FaultyProxy) -> None:
    store.put_bytes("a", b"x" * 1000)
    for fault in (Fault("GET", "/a", 2, cut_answer_at=500), Fault("GET", "/a", 2, flip_answer=True)):
        proxy.faults = [fault]
        assert store.get_bytes("a") == b"x" * 1000
        assert fault.times == 0


@pytest.fixture
def fake() -> Iterator[FakeS3]:
    fake = FakeS3()
    with serving(fake):
        yield fake


def fake_store(fake: FakeS3, tmp_path: Path, checksums: Checksums = Checksums.AUTO) -> S3Store:
    keys = an_access(tmp_path, SimpleNamespace(endpoint=fake.endpoint, region="", access_key="a", secret_key="b"))
    return S3Store("bucket", "run", StorageAccess(**{**dict(keys), "checksums": checksums}))


@pytest.mark.parametrize("status", [400, 501])
def test_auto_goes_on_without_checksums_where_the_server_refuses_them(
    fake: FakeS3, tmp_path: Path, run: RunSpec, artifact: Path, status: int
) -> None:
    fake.habits.refuses_checksums = status
    store = fake_store(fake, tmp_path)
    published(store, run, artifact)
    assert has_whole_manifest(store, artifact)
    assert {stored.checksum for stored in fake.objects.values()} == {None}
    refused = [method for method, path in fake.calls if method == "PUT"]
    assert len(refused) == len(fake.objects) + 2, "one refused call, and the try at a condition"


def test_always_says_that_the_server_refuses_checksums(fake: FakeS3, tmp_path: Path) -> None:
    fake.habits.refuses_checksums = 501
    with pytest.raises(RunError, match="refused an upload with a SHA-256 checksum") as caught:
        fake_store(fake, tmp_path, Checksums.ALWAYS).put_bytes("a", b"1")
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "ChecksumsRefused")
    assert "storage.checksums" in caught.value.remedy


@pytest.mark.parametrize(("checksums", "sent"), [(Checksums.ALWAYS, True), (Checksums.NEVER, False)])
def test_checksums_are_sent_as_the_field_says(fake: FakeS3, tmp_path: Path, checksums: Checksums, sent: bool) -> None:
    fake_store(fake, tmp_path, checksums).put_bytes("a", b"1")
    assert (fake.objects["/bucket/run/a"].checksum is not None) is sent


@pytest.mark.parametrize("damaged", ["safetensors", "README", MANIFEST_FILE])
def test_without_checksums_a_server_that_damages_a_file_is_found_out(
    fake: FakeS3, tmp_path: Path, run: RunSpec, artifact: Path, damaged: str
) -> None:
    fake.habits.damages = damaged
    with pytest.raises(RunError) as caught:
        published(fake_store(fake, tmp_path, Checksums.NEVER), run, artifact)
    assert (caught.value.failure_class, caught.value.reason) == ("Infrastructure", "UploadDamaged")
    assert f"/bucket/run/{MANIFEST_FILE}" not in fake.objects


@pytest.mark.parametrize("habits", [Habits(ignores_conditions=True), Habits(refuses_conditions=True)])
def test_a_server_without_conditional_writes_is_found_out_and_told(
    fake: FakeS3, tmp_path: Path, run: RunSpec, artifact: Path, habits: Habits
) -> None:
    fake.habits = habits
    said: list[str] = []
    store = fake_store(fake, tmp_path)
    first = publish(store, run, artifact, WRITER, "adapter", RESULT, said.append)
    assert any("If-None-Match" in line for line in said)
    second = publish(store, run, artifact, "another-writer", "adapter", RESULT, said.append)
    assert second == first, "nobody overwrites what is there"
    assert has_whole_manifest(store, artifact)


def test_twins_on_a_server_without_conditional_writes_leave_one_whole_manifest(
    fake: FakeS3, tmp_path: Path, run: RunSpec, artifact: Path
) -> None:
    fake.habits.ignores_conditions = True
    stores = [fake_store(fake, tmp_path) for _ in range(4)]

    def one(number: int) -> None:
        publish(stores[number], run, artifact, f"{number}-writer-of-its-own", "adapter", RESULT)

    threads = [threading.Thread(target=one, args=[number]) for number in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert has_whole_manifest(stores[0], artifact)
    assert existing_result(stores[0], run) is not None


def test_a_server_with_conditional_writes_is_not_complained_about(store: S3Store, run: RunSpec, artifact: Path) -> None:
    said: list[str] = []
    publish(store, run, artifact, WRITER, "adapter", RESULT, said.append)
    assert said == []
