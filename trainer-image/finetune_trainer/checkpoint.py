"""Checkpoints in the run's store: `checkpoints/step-N-<writer>/`, whole or not there.

Tensors lie in safetensors files, everything else in `loop.json`; the manifest with size and SHA-256 of each file is
written last. A folder without one, or whose files differ from it, is no checkpoint. A thread writes while training goes
on, one checkpoint at a time; an older one is removed only once the newer one is whole.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api.base import Model
from finetune_api.names import CHECKPOINTS_FOLDER, MANIFEST_FILE, FailureClass
from finetune_api.progress import CheckpointStatus
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_trainer.errors import RunError
from finetune_trainer.log import Log
from finetune_trainer.manifest import ManifestFile, described
from finetune_trainer.store import NotFoundError, Store, uri_of

LOOP_FILE = "loop.json"
WEIGHTS, OPTIMIZER = "weights", "optimizer"
"""What the names of the tensor files start with."""

SHARD_BYTES = 2**30
"""A file takes tensors up to this size together, so that little disk is needed: each is removed once uploaded."""

MANIFEST_KEY = re.compile(rf"({CHECKPOINTS_FOLDER}/step-(\d+)-[^/]+)/{re.escape(MANIFEST_FILE)}")
FOLDER_KEY = re.compile(rf"({CHECKPOINTS_FOLDER}/step-(\d+)-[^/]+)/.+")


@dataclass(frozen=True)
class Snapshot:
    """Training after a step; nothing changes it any more."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    """The rest, as JSON."""


@dataclass(frozen=True)
class Origin:
    """What makes checkpoints."""

    writer: str
    """Who writes; it tells its folders from others'."""
    attempt: int
    run: str
    """Digest of all that decides what is learned. A checkpoint of another run is not continued."""
    plan: dict[str, Any]
    """How it is computed: device, threads and the like. Another plan may go on, not bit for bit."""


class CheckpointManifest(Model):
    """One checkpoint. Read tolerantly: the attempt that wrote it may have been of another release."""

    version: int = 1
    step: int
    attempt: int
    saved_at: datetime
    run: str
    plan: dict[str, Any]
    files: list[ManifestFile]


class BrokenError(Exception):
    """A folder is no checkpoint, and why."""


def newest_step(store: Store) -> int:
    """The newest step that is said to be saved; 0 where none is."""
    return max((step for step, _ in _folders(store, MANIFEST_KEY)), default=0)


def _folders(store: Store, pattern: re.Pattern[str]) -> set[tuple[int, str]]:
    """Step and key of each folder with an object whose key is like `pattern`."""
    keys = (pattern.fullmatch(item.key) for item in store.list(f"{CHECKPOINTS_FOLDER}/"))
    return {(int(match[2]), match[1]) for match in keys if match}


@dataclass
class Checkpoints:
    """The checkpoints of one run, as one attempt at it sees them."""

    store: Store
    scratch: Path
    origin: Origin
    keep: int
    """The newest so many are kept, and the best."""
    tell: Callable[[CheckpointStatus], None]
    """Told of each checkpoint that is whole; called from the thread that writes."""
    log: Log
    writes: bool = True
    """False on a rank that only goes along: it reads, and counts what the first one saves."""
    _newest_step: int = 0
    _pending: Future[None] | None = None
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="checkpoint"))

    def newest(self) -> Snapshot | None:
        """The newest whole checkpoint of any writer; a broken one is passed over with a warning.

        Raises RunError (InvalidConfig, CheckpointMismatch) where it is of other settings or data.
        """
        for step, folder in sorted(_folders(self.store, MANIFEST_KEY), reverse=True):
            try:
                manifest = self._manifest(folder)
                self._check_origin(manifest, folder)
                snapshot = self._read(folder, manifest)
            except BrokenError as error:
                self.log.warn(f"{uri_of(self.store, folder)} is no whole checkpoint: {error}")
                continue
            self._newest_step = step
            self.tell(CheckpointStatus(step=step, uri=uri_of(self.store, folder), saved_at=manifest.saved_at))
            return snapshot
        return None

    def has(self, step: int) -> bool:
        """Whether this step is saved, or is being saved."""
        return step == self._newest_step

    def save(self, snapshot: Snapshot, best_step: int | None) -> None:
        """Start to write a checkpoint, once the one before is written. Raises what went wrong with that one."""
        self.finish()
        self._newest_step = snapshot.step
        if not self.writes:
            return
        self._pending = self._writer.submit(self._write, snapshot, best_step)

    def finish(self) -> None:
        """Wait until everything is written. Raises what went wrong, RunError for the store."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def weights(self, step: int) -> dict[str, Tensor]:
        """The weights after `step`. Raises RunError (Infrastructure) where there is no whole checkpoint of it."""
        for found, folder in _folders(self.store, MANIFEST_KEY):
            if found != step:
                continue
            try:
                return self._tensors(folder, self._manifest(folder), WEIGHTS)
            except BrokenError as error:
                self.log.warn(f"{uri_of(self.store, folder)} is no whole checkpoint: {error}")
        message = f"the checkpoint of step {step}, the best one, is not in {uri_of(self.store, CHECKPOINTS_FOLDER)}"
        raise RunError(FailureClass.INFRASTRUCTURE, "CheckpointLost", message)

    def _write(self, snapshot: Snapshot, best_step: int | None) -> None:
        folder = f"{CHECKPOINTS_FOLDER}/step-{snapshot.step}-{self.origin.writer}"
        local = _new_folder(self.scratch / "write-checkpoint")
        files = [self._put(local, folder, name, write) for name, write in _files(snapshot)]
        manifest = CheckpointManifest(
            step=snapshot.step,
            attempt=self.origin.attempt,
            saved_at=datetime.now(UTC).replace(microsecond=0),
            run=self.origin.run,
            plan=self.origin.plan,
            files=files,
        )
        self.store.put_bytes(f"{folder}/{MANIFEST_FILE}", manifest.model_dump_json(by_alias=True, indent=1).encode())
        self.tell(CheckpointStatus(step=snapshot.step, uri=uri_of(self.store, folder), saved_at=manifest.saved_at))
        try:
            self._remove_old(best_step)
        except RunError as error:
            self.log.warn(f"old checkpoints stay: {error}")  # They cost space; the run is as safe as before.

    def _put(self, local: Path, folder: str, name: str, write: Callable[[Path], None]) -> ManifestFile:
        path = local / name
        write(path)
        listed = described(local, name)
        self.store.put_file(f"{folder}/{name}", path)
        path.unlink()
        return listed

    def _remove_old(self, best_step: int | None) -> None:
        """All but the newest `keep` and the best; of two of one step, all but our own. The manifest goes first."""
        by_step = dict(
            sorted(_folders(self.store, MANIFEST_KEY), key=lambda found: found[1].endswith(self.origin.writer))
        )
        newest = sorted(by_step, reverse=True)[: self.keep]
        kept = {folder for step, folder in by_step.items() if step in newest or step == best_step}
        # A folder above the newest that has no manifest is being written by a twin.
        old = {folder for step, folder in _folders(self.store, FOLDER_KEY) if step <= newest[0]} - kept
        for folder in sorted(old):
            self.store.delete(f"{folder}/{MANIFEST_FILE}")
            for item in self.store.list(f"{folder}/"):
                self.store.delete(item.key)

    def _manifest(self, folder: str) -> CheckpointManifest:
        try:
            return CheckpointManifest.model_validate_json(self.store.get_bytes(f"{folder}/{MANIFEST_FILE}"))
        except (NotFoundError, ValidationError) as error:
            raise BrokenError(f"its manifest cannot be read: {error}") from error

    def _check_origin(self, manifest: CheckpointManifest, folder: str) -> None:
        if manifest.run != self.origin.run:
            message = f"{uri_of(self.store, folder)} was made with other settings or other data"
            remedy = "Give the run another output, or remove its checkpoints."
            raise RunError(FailureClass.INVALID_CONFIG, "CheckpointMismatch", message, remedy)
        plan = self.origin.plan
        other = [f"{key} was {was}, now {plan.get(key)}" for key, was in manifest.plan.items() if was != plan.get(key)]
        if other:
            self.log.warn(f"going on from step {manifest.step}, not bit for bit as without a stop: {', '.join(other)}")

    def _read(self, folder: str, manifest: CheckpointManifest) -> Snapshot:
        weights, optimizer = (self._tensors(folder, manifest, kind) for kind in (WEIGHTS, OPTIMIZER))
        states = [json.loads(path.read_bytes()) for path in self._fetched(folder, manifest, LOOP_FILE)]
        if not states:
            raise BrokenError(f"its manifest lists no {LOOP_FILE}")
        return Snapshot(manifest.step, weights, optimizer, states[0])

    def _tensors(self, folder: str, manifest: CheckpointManifest, kind: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for path in self._fetched(folder, manifest, kind):
            tensors |= load_file(path)
        return tensors

    def _fetched(self, folder: str, manifest: CheckpointManifest, start: str) -> Iterator[Path]:
        """Each file whose name has this start, checked; it is gone once the next one is asked for."""
        local = _new_folder(self.scratch / "read-checkpoint")
        for file in (listed for listed in manifest.files if listed.name.startswith(start)):
            path = local / Path(file.name).name
            try:
                self.store.get_file(f"{folder}/{file.name}", path)
            except NotFoundError as error:
                raise BrokenError(str(error)) from error
            if not file.matches(path):
                raise BrokenError(f"{file.name} does not hold the bytes that its manifest lists")
            yield path
            path.unlink()


def _files(snapshot: Snapshot) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Name of each file, and what writes it."""
    for kind, tensors in ((WEIGHTS, snapshot.weights), (OPTIMIZER, snapshot.optimizer)):
        for number, shard in enumerate(_shards(tensors)):
            yield f"{kind}-{number:05}.safetensors", partial(save_file, shard)
    # Infinity, as in a best loss before the first evaluation, is no JSON, but Python's module reads what it writes.
    yield LOOP_FILE, partial(_write_text, json.dumps(snapshot.state))


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _shards(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in order, in groups of at most SHARD_BYTES where a tensor is not larger itself."""
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if shard and sum(of.nbytes for of in shard.values()) + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = tensor
    if shard:
        yield shard


def _new_folder(folder: Path) -> Path:
    """An empty folder: what an attempt that was cut short left there is no part of this one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
