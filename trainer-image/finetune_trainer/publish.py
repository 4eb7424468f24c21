"""Publishing: upload the artifact's folder, check every object, then one manifest that only one writer can create.

Readers trust the manifest alone. What was uploaded before it exists is nobody's artifact, so a failure at any point
publishes nothing. Loads without torch.
"""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.base import Model
from finetune_api.findings import ArtifactStatus
from finetune_api.names import ARTIFACTS_FOLDER, MANIFEST_FILE, FailureClass
from finetune_api.run import RunIdentity, RunResult, RunRoot, RunSpec
from pydantic import ValidationError

from finetune_trainer.errors import RunError
from finetune_trainer.manifest import ManifestFile, described
from finetune_trainer.store import NotFoundError, Store, damaged, uri_of

WRITER_LENGTH = 8
"""Characters of the writer's id that tell its folder from others'."""

OVERWRITES = (
    "the server of {} overwrites in spite of If-None-Match: the manifest is written only where none is seen, but of "
    "two pods that publish in the same moment the last one wins"
)


class Manifest(Model):
    """The artifact of a run: there is one at most, and it is never overwritten.

    Read tolerantly: the attempt that wrote it may have been of another release.
    """

    version: int = 1
    identity: RunIdentity
    attempt: int
    created_at: datetime
    uri: str
    """Folder of the artifact."""
    format: str
    """`adapter`, `merged`, `both` or `model`."""
    files: list[ManifestFile]
    result: RunResult
    """What the run found, without the artifact itself."""


def existing_result(store: Store, spec: RunRoot) -> RunResult | None:
    """The result of an earlier attempt, or a twin, that has published already; None where nobody has.

    Raises RunError where the output belongs to another run.
    """
    try:
        data = store.get_bytes(MANIFEST_FILE)
    except NotFoundError:
        return None
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise _taken(f"{uri_of(store, MANIFEST_FILE)} is there already, and is no manifest") from error
    if manifest.identity.uid != spec.identity.uid:
        raise _taken(f"{uri_of(store, MANIFEST_FILE)} belongs to another run, with uid {manifest.identity.uid}")
    return _with_artifact(store, manifest, data)


def artifact_folder(attempt: int, writer: str) -> str:
    """Key of the folder that this writer alone uploads to."""
    return f"{ARTIFACTS_FOLDER}/{attempt}-{writer[:WRITER_LENGTH]}"


def upload(store: Store, spec: RunSpec, folder: Path, writer: str) -> str:
    """Upload every file of `folder` and check it; returns the key of the folder, which is no artifact yet."""
    key, names = artifact_folder(spec.attempt, writer), _names(folder)
    for name in names:
        store.put_file(f"{key}/{name}", folder / name)
    for name in names:
        store.verify(f"{key}/{name}", folder / name)
    return key


def publish(
    store: Store,
    spec: RunSpec,
    folder: Path,
    writer: str,
    form: str,
    result: RunResult,
    warn: Callable[[str], None] = lambda message: None,
) -> RunResult:
    """Upload every file of `folder` and publish it. Returns the result of whoever published first: us, or a twin."""
    key, names = upload(store, spec, folder, writer), _names(folder)
    manifest = Manifest(
        identity=spec.identity,
        attempt=spec.attempt,
        created_at=datetime.now(UTC),
        uri=uri_of(store, key),
        format=form,
        files=[described(folder, name) for name in names],
        result=result,
    )
    data = manifest.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()
    smallest = min(names, key=lambda name: (folder / name).stat().st_size)
    if not store.keeps_what_is_there(f"{key}/{smallest}", (folder / smallest).read_bytes()):
        warn(OVERWRITES.format(store.uri))
        if (earlier := existing_result(store, spec)) is not None:
            return earlier
    wrote = store.put_if_absent(MANIFEST_FILE, data)
    return _what_readers_find(store, spec, manifest, data, wrote)


def _what_readers_find(store: Store, spec: RunSpec, manifest: Manifest, data: bytes, wrote: bool) -> RunResult:
    """The manifest as it is read back, whoever wrote it: that is what readers will trust.

    One that we wrote and that is neither ours nor a twin's was damaged: nobody needs it, and it would bar the way.
    """
    found = store.get_bytes(MANIFEST_FILE) if wrote else b""
    if found == data:
        return _with_artifact(store, manifest, data)
    if wrote and not _is_of_another(found, manifest):
        store.delete(MANIFEST_FILE)
        raise damaged(uri_of(store, MANIFEST_FILE))
    winner = existing_result(store, spec)
    if winner is None:
        message = f"{uri_of(store, MANIFEST_FILE)} was there and is gone"
        raise RunError(FailureClass.INFRASTRUCTURE, "ManifestLost", message)
    return winner


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _is_of_another(data: bytes, ours: Manifest) -> bool:
    try:
        return Manifest.model_validate_json(data).uri != ours.uri
    except ValidationError:
        return False


def _with_artifact(store: Store, manifest: Manifest, data: bytes) -> RunResult:
    artifact = ArtifactStatus(
        uri=manifest.uri,
        manifest_uri=uri_of(store, MANIFEST_FILE),
        format=manifest.format,
        bytes=sum(file.size for file in manifest.files),
        sha256=hashlib.sha256(data).hexdigest(),
        files=len(manifest.files),
    )
    # What prepare has told already would only fill the pod's short message.
    told = {"resolved": None, "effective_hyperparameters": None}
    return manifest.result.model_copy(update={"artifact": artifact, **told})


def _taken(message: str) -> RunError:
    remedy = "Choose another output.uri, or remove what is there."
    return RunError(FailureClass.INVALID_CONFIG, "OutputTaken", message, remedy)
