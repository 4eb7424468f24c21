"""A checkpoint is whole or not there, whatever is killed when; old ones go only once newer ones are whole."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.names import FailureClass
from finetune_api.progress import CheckpointStatus
from finetune_api.run import StorageAccess
from finetune_trainer import checkpoint
from finetune_trainer.checkpoint import Checkpoints, Origin, Snapshot
from finetune_trainer.errors import RunError
from finetune_trainer.log import Log
from finetune_trainer.s3_place import s3_client
from finetune_trainer.store import FileStore, Store, open_store

from tests.trainer.s3_access import an_access

ORIGIN = Origin("first000", 1, "digest", {"threads": 1})


class Died(BaseException):
    """Stands for kill -9: nothing of the process runs after it."""


class MortalStore(FileStore):
    """Dies at its n-th write or removal, with half of what it wrote in place."""

    def __init__(self, folder: Path, lives: int) -> None:
        super().__init__(folder)
        self.lives = lives

    def put_bytes(self, key: str, data: bytes) -> None:
        self._live(lambda: super(MortalStore, self).put_bytes(key, data[: len(data) // 2]))
        super().put_bytes(key, data)

    def put_file(self, key: str, path: Path) -> None:
        self._live(lambda: super(MortalStore, self).put_bytes(key, path.read_bytes()[: path.stat().st_size // 2]))
        super().put_file(key, path)

    def delete(self, key: str) -> None:
        self._live(lambda: None)
        super().delete(key)

    def _live(self, last_deed: Callable[[], None]) -> None:
        if self.lives == 0:
            last_deed()
            raise Died
        self.lives -= 1


@dataclass
class Keeper:
    """Checkpoints with what they told and logged."""

    folder: Path
    store: Store | None = None
    keep: int = 2
    origin: Origin = ORIGIN
    told: list[CheckpointStatus] = field(default_factory=list)
    stream: io.StringIO = field(default_factory=io.StringIO)

    def open(self, **origin: Any) -> Checkpoints:
        store = self.store or open_store(f"file://{self.folder / 'out'}", StorageAccess())
        made_by = replace(self.origin, **origin)
        return Checkpoints(
            store, self.folder / "scratch", made_by, self.keep, self.told.append, Log(stream=self.stream)
        )

    @property
    def log(self) -> str:
        return self.stream.getvalue()


def a_snapshot(step: int) -> Snapshot:
    weights = {"a": torch.full((3, 2), float(step)), "b": torch.arange(step)}
    return Snapshot(step, weights, {"a|exp_avg": torch.full((3,), step / 3)}, {"told": step, "best": float("inf")})


def assert_is(found: Snapshot | None, step: int) -> None:
    wanted = a_snapshot(step)
    assert found is not None
    assert (found.step, found.state) == (step, wanted.state)
    for kind in ("weights", "optimizer"):
        one, other = getattr(found, kind), getattr(wanted, kind)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def save(checkpoints: Checkpoints, *steps: int, best: int | None = None) -> None:
    for step in steps:
        checkpoints.save(a_snapshot(step), best)
    checkpoints.finish()


def steps_in(folder: Path) -> list[str]:
    """The folders of the checkpoints there are."""
    return sorted(path.name for path in (folder / "out" / "checkpoints").iterdir())


@pytest.fixture(params=["file", "s3"])
def keeper(request: pytest.FixtureRequest, tmp_path: Path) -> Keeper:
    """In a folder and in a real S3."""
    if request.param == "file":
        return Keeper(tmp_path)
    access = an_access(tmp_path, request.getfixturevalue("s3"))
    bucket = tmp_path.name.replace("_", "-").lower()
    s3_client(access).create_bucket(Bucket=bucket)
    return Keeper(tmp_path, open_store(f"s3://{bucket}/run", access))


def test_the_newest_comes_back_as_it_was_and_is_told_of(keeper: Keeper) -> None:
    save(keeper.open(), 9, 10)
    assert [status.step for status in keeper.told] == [9, 10]
    again = keeper.open(writer="second00", attempt=2)
    assert_is(again.newest(), 10)
    assert again.has(10)
    assert keeper.told[-1] == keeper.told[-2]
    assert keeper.told[-1].uri.endswith("/checkpoints/step-10-first000")


def test_the_newest_and_the_best_are_kept_and_nothing_else(keeper: Keeper) -> None:
    checkpoints = keeper.open()
    save(checkpoints, 1, 2, 3, 4, 5, best=2)
    kept = {item.key.split("/")[1] for item in checkpoints.store.list("checkpoints/")}
    assert kept == {"step-2-first000", "step-4-first000", "step-5-first000"}
    assert torch.equal(keeper.open().weights(2)["a"], a_snapshot(2).weights["a"])


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert Keeper(tmp_path).open().newest() is None


def writes_of(steps: tuple[int, ...], folder: Path) -> int:
    """How often saving these steps writes or removes something."""
    store = MortalStore(folder / "counted" / "out", 10**6)
    save(Keeper(folder / "counted", store).open(), *steps)
    return 10**6 - store.lives


def test_killed_at_any_write_the_newest_is_still_whole(tmp_path: Path) -> None:
    steps = (1, 2, 3, 4)
    writes = writes_of(steps, tmp_path)
    assert writes == 4 * len(steps) + 2 * 4  # Two weights, optimizer, loop, manifest; steps 1 and 2 are removed.
    for lives in range(writes):
        folder = tmp_path / str(lives)
        keeper = Keeper(folder, MortalStore(folder / "out", lives))
        with pytest.raises(Died):
            save(keeper.open(), *steps)
        whole = [status.step for status in keeper.told]
        found = Keeper(folder).open(writer="second00", attempt=2).newest()
        if whole:
            assert_is(found, whole[-1])
        else:
            assert found is None


@pytest.mark.parametrize("name", ["weights-00000.safetensors", "optimizer-00000.safetensors", "loop.json"])
@pytest.mark.parametrize("how", ["missing", "cut", "changed"])
def test_a_checkpoint_whose_files_differ_is_passed_over_with_a_warning(tmp_path: Path, name: str, how: str) -> None:
    keeper = Keeper(tmp_path)
    save(keeper.open(), 1, 2)
    path = tmp_path / "out" / "checkpoints" / "step-2-first000" / name
    data = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(data[:-1] if how == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    assert_is(keeper.open().newest(), 1)
    assert "step-2-first000 is no whole checkpoint" in keeper.log
    assert name in keeper.log


def test_a_best_checkpoint_that_is_broken_is_no_model(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    save(keeper.open(), 1, 2)
    (tmp_path / "out" / "checkpoints" / "step-1-first000" / "weights-00000.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="the checkpoint of step 1, the best one") as caught:
        keeper.open().weights(1)
    assert (caught.value.failure_class, caught.value.reason) == (FailureClass.INFRASTRUCTURE, "CheckpointLost")


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    save(keeper.open(), 1)
    with pytest.raises(RunError, match="other settings or other data") as caught:
        keeper.open(run="other").newest()
    assert (caught.value.failure_class, caught.value.reason) == (FailureClass.INVALID_CONFIG, "CheckpointMismatch")


def test_another_plan_goes_on_with_a_warning(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    save(keeper.open(), 1)
    assert_is(keeper.open(plan={"threads": 4}).newest(), 1)
    assert "not bit for bit" in keeper.log
    assert "threads was 1, now 4" in keeper.log


def test_a_failed_write_surfaces_at_the_next_save(tmp_path: Path) -> None:
    class ClosedStore(FileStore):
        def put_file(self, key: str, path: Path) -> None:
            raise RunError(FailureClass.INFRASTRUCTURE, "StorageUnavailable", "S3 does not answer")

    checkpoints = Keeper(tmp_path, ClosedStore(tmp_path / "out")).open()
    checkpoints.save(a_snapshot(1), None)
    with pytest.raises(RunError, match="S3 does not answer"):
        checkpoints.save(a_snapshot(2), None)


def test_old_checkpoints_that_may_not_be_removed_stay_with_a_warning(tmp_path: Path) -> None:
    class KeepingStore(FileStore):
        def delete(self, key: str) -> None:
            raise RunError(FailureClass.ACCESS_DENIED, "AccessDenied", "DeleteObject was denied")

    keeper = Keeper(tmp_path, KeepingStore(tmp_path / "out"), keep=1)
    save(keeper.open(), 1, 2)
    assert "old checkpoints stay: AccessDenied" in keeper.log
    assert_is(keeper.open().newest(), 2)


def test_what_an_attempt_left_unfinished_is_removed_by_the_next_but_not_what_is_newer(tmp_path: Path) -> None:
    unfinished = tmp_path / "out" / "checkpoints"
    for name in ("step-2-dead0000", "step-9-twin0000"):
        (unfinished / name).mkdir(parents=True)
        (unfinished / name / "weights-00000.safetensors").write_bytes(b"half")
    save(Keeper(tmp_path).open(), 5)
    assert steps_in(tmp_path) == ["step-5-first000", "step-9-twin0000"]


def test_of_two_checkpoints_of_one_step_our_own_stays(tmp_path: Path) -> None:
    save(Keeper(tmp_path).open(), 5)
    save(Keeper(tmp_path).open(writer="second00"), 5)
    assert steps_in(tmp_path) == ["step-5-second00"]


def test_large_tensors_are_spread_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 20)
    keeper = Keeper(tmp_path)
    save(keeper.open(), 3)
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints" / "step-3-first000").iterdir())
    assert [name for name in names if name.startswith("weights")] == [
        "weights-00000.safetensors",
        "weights-00001.safetensors",
    ]
    assert_is(keeper.open().newest(), 3)


def test_the_scratch_space_is_empty_afterwards(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    save(keeper.open(), 1, 2)
    keeper.open().newest()
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []
