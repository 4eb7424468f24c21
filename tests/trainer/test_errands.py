"""Errands: what a stage came to is read from the store, and what a run wrote is removed, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
from finetune_api.findings import DataStatus, EffectiveHyperparameters, Resolved, RowCounts
from finetune_api.names import Errand, Exit, FailureClass, Stage
from finetune_api.progress import Metrics
from finetune_api.run import CleanupResult, RunIdentity, RunResult, RunRoot, StorageAccess
from finetune_api.status import Failure
from finetune_trainer.__main__ import main
from finetune_trainer.errands import cleanup, lost_result
from finetune_trainer.errors import RunError
from finetune_trainer.prepared import REFERENCES_FILE, TOKENS_FILE, PreparedIndex, write_prepared
from finetune_trainer.publish import publish
from finetune_trainer.s3 import S3Store
from finetune_trainer.s3_place import s3_client
from finetune_trainer.s3_uploads import PART_BYTES
from finetune_trainer.store import open_store

from tests.trainer.faulty_s3 import Fault, FaultyProxy
from tests.trainer.runs import a_dataset, a_run
from tests.trainer.s3_access import an_access, make_bucket
from tests.trainer.serving import serving

UID = "9f3c2a10"
OWN = RunIdentity(namespace="team-a", name="story", uid=UID)


def a_root(start: str, access: StorageAccess | None = None, **changes: Any) -> RunRoot:
    root = RunRoot(identity=OWN, output_uri=f"{start}/team-a/story/{UID}", storage=access or StorageAccess())
    return root.model_copy(update=changes)


def silent(message: str) -> None:
    """Nobody reads along."""


def written(tmp_path: Path, root: RunRoot) -> list[str]:
    """`--run` and a file with the order."""
    path = tmp_path / "run.json"
    path.write_text(root.model_dump_json(by_alias=True))
    return ["--run", str(path)]


@pytest.fixture(scope="module")
def bucket(s3: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, StorageAccess]:
    access = an_access(tmp_path_factory.mktemp("access"), s3)
    return make_bucket(access, "errands"), access


def test_only_what_the_run_wrote_is_removed(bucket: tuple[str, StorageAccess], tmp_path: Path) -> None:
    name, access = bucket
    neighbours = [f"team-a/story/{UID}-2/manifest.json", "team-a/other/1/a", "b"]
    everything = S3Store(name, "", access)
    for key in neighbours:
        everything.put_bytes(f"out/{key}", b"not ours")
    root = a_root(f"s3://{name}/out", access)
    own = S3Store(name, f"out/team-a/story/{UID}", access, part_bytes=PART_BYTES)
    for number in range(20):
        own.put_bytes(f"checkpoints/step-{number}/weights", b"weights")
    own.put_bytes("manifest.json", b"{}")
    begun = [f"out/team-a/story/{UID}/prepared/tokens", "out/team-a/other/1/tokens"]
    for key in begun:
        s3_client(access).create_multipart_upload(Bucket=name, Key=key)
    assert cleanup(root, open_store(root.output_uri, access), silent) == CleanupResult(removed=21)
    assert [found.key for found in everything.list("out/")] == sorted(f"out/{key}" for key in neighbours)
    left = s3_client(access).list_multipart_uploads(Bucket=name)["Uploads"]
    assert [upload["Key"] for upload in left] == begun[1:]
    assert cleanup(root, open_store(root.output_uri, access), silent).removed == 0


def test_a_bucket_that_is_gone_holds_nothing_to_remove(bucket: tuple[str, StorageAccess]) -> None:
    root = a_root("s3://never-was", bucket[1])
    assert cleanup(root, open_store(root.output_uri, root.storage), silent) == CleanupResult()


def test_what_may_not_be_removed_is_told_in_a_line(
    s3: Any, bucket: tuple[str, StorageAccess], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, _ = bucket
    proxy = FaultyProxy(s3.endpoint)
    with serving(proxy):
        access = bucket[1].model_copy(update={"endpoint": proxy.endpoint})
        root = a_root(f"s3://{name}/denied", access)
        S3Store(name, f"denied/team-a/story/{UID}", access).put_bytes("a", b"a")
        proxy.faults.append(Fault("DELETE", "/a", times=9, status=403, code="AccessDenied"))
        assert main([Errand.CLEANUP, *written(tmp_path, root)]) == Exit.USER_ERROR
    told = CleanupResult.model_validate_json(capsys.readouterr().out)
    assert told.failure is not None
    assert told.failure.failure_class is FailureClass.ACCESS_DENIED
    assert f"DeleteObject on s3://{name}/denied/team-a/story/{UID}/a was denied" in told.failure.message


@pytest.mark.parametrize(
    "uri", ["s3://bucket/team-a/story", "s3://bucket", f"s3://b/team-a/other/{UID}", f"s3://b/team-a/story/x{UID}"]
)
def test_nothing_is_removed_from_a_folder_that_is_not_the_runs_alone(uri: str, tmp_path: Path) -> None:
    root = a_root("", output_uri=uri)
    with pytest.raises(RunError) as raised:
        cleanup(root, open_store(tmp_path.as_uri(), StorageAccess()), silent)
    assert raised.value.reason == "OutputNotOwn"


def test_a_folder_of_the_machine_is_empty_afterwards(tmp_path: Path) -> None:
    root = a_root(tmp_path.as_uri())
    store = open_store(root.output_uri, root.storage)
    for key in ("manifest.json", "checkpoints/step-1/a", "prepared/b"):
        store.put_bytes(key, b"x")
    assert main([Errand.CLEANUP, *written(tmp_path, root)]) == Exit.OK
    assert list((tmp_path / "team-a" / "story" / UID).iterdir()) == []


def test_a_long_failure_still_fits_into_a_termination_message() -> None:
    failure = Failure(failure_class=FailureClass.ACCESS_DENIED, reason="Why", message="ä" * 2048, remedy="ß" * 1024)
    text = CleanupResult(failure=failure).to_message()
    assert len(text.encode()) <= 4000
    assert CleanupResult.model_validate_json(text).failure is not None


def an_index() -> PreparedIndex:
    return PreparedIndex(
        effective_hyperparameters=EffectiveHyperparameters(epochs=3),
        resolved=Resolved(model_revision="abc"),
        data=DataStatus(rows=RowCounts(train=8)),
        datasets=[],
        end_token_id=2,
    )


def test_the_result_of_a_stage_is_read_again_from_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = a_root(tmp_path.as_uri())
    store = open_store(root.output_uri, root.storage)
    for name in (TOKENS_FILE, REFERENCES_FILE, "adapter.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    write_prepared(store, tmp_path, an_index())
    assert main([Errand.RESULT, *written(tmp_path, root), "--stage", Stage.PREPARE]) == Exit.OK
    assert RunResult.model_validate_json(capsys.readouterr().out) == an_index().result()

    run = a_run(tmp_path, "hf://a/b", [a_dataset(tmp_path)]).model_copy(update={"identity": OWN})
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "adapter.safetensors").write_bytes(b"weights")
    said = RunResult(stage=Stage.TRAIN, metrics=Metrics(training_loss=0.5))
    published = publish(store, run, tmp_path / "artifact", "0123456789", "adapter", said)
    assert main([Errand.RESULT, *written(tmp_path, root), "--stage", Stage.TRAIN]) == Exit.OK
    assert RunResult.model_validate_json(capsys.readouterr().out) == published


@pytest.mark.parametrize("stage", list(Stage))
def test_a_stage_that_left_nothing_has_lost_its_result(stage: Stage, tmp_path: Path) -> None:
    root = a_root(tmp_path.as_uri())
    with pytest.raises(RunError) as raised:
        lost_result(root, open_store(root.output_uri, root.storage), stage)
    assert (raised.value.failure_class, raised.value.reason) == (FailureClass.INFRASTRUCTURE, "ResultLost")


def test_the_order_of_a_stage_serves_an_errand_too(tmp_path: Path) -> None:
    run = a_run(tmp_path, "hf://a/b", [a_dataset(tmp_path)])
    assert RunRoot.model_validate_json(run.model_dump_json(by_alias=True)).output_uri == run.output_uri
