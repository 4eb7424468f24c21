"""An artifact as a model again: base and adapter, or the whole model, with the templates and settings of its run.

Everything comes from `run.lock.json`. A folder without one is no artifact, and is never looked up as a name of the hub.
"""

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from finetune_api.names import LOCK_FILE, MANIFEST_FILE, FailureClass
from finetune_api.resource import TrainingSpec
from finetune_api.run import RunIdentity, RunSpec, SecretFolder, StorageAccess
from finetune_api.sources import BaseModelSource
from finetune_api.training import Quantization
from pydantic import ValidationError

from finetune_trainer.adapter import continue_adapter
from finetune_trainer.compute import Compute
from finetune_trainer.errors import RunError
from finetune_trainer.fetch import ModelFiles, fetch_model
from finetune_trainer.model import Model, load_base
from finetune_trainer.publish import Manifest
from finetune_trainer.store import NotFoundError, Store, open_store


@dataclass(frozen=True)
class Reach:
    """How files are reached, and where they may lie meanwhile."""

    storage: StorageAccess
    hub: SecretFolder | None
    """Folder with `HF_TOKEN`."""
    scratch: Path
    trusted: bool = False
    """Whether a model's own code may run here, where its run allowed it: a lock file may come from anybody."""


@dataclass(frozen=True)
class Restored:
    """An artifact's model and what its run was."""

    model: Model
    files: ModelFiles
    spec: RunSpec
    """The run's order, with the artifact as its model."""
    template_date: date | None = None
    """The date that chat templates were told, where the run had chats."""

    @property
    def trusted(self) -> bool:
        """Whether the model's own code may run: its run and the caller both allowed it."""
        return self.spec.training.model.trust_remote_code


def restore(place: str, reach: Reach, compute: Compute) -> Restored:
    """Load the artifact at an `s3://` or `file://` URI or in a folder, or the one that a run's root has a manifest of.

    Raises RunError (InvalidConfig): NoLockFile, LockFileInvalid, RemoteCodeForbidden, ModelChanged, and as fetching and
    loading a model does.
    """
    store = _artifact(open_store(artifact_uri(place), reach.storage), reach)
    lock = _read_lock(store)
    spec = _order(store, lock, reach)
    files = fetch_model(spec, reach.scratch, weights=True)
    if files.base and files.base.revision != lock["base"]["revision"]:
        message = f"{files.base.uri}, the base of {store.uri}, is not what it was: revision {files.base.revision}"
        remedy = f"Bring back revision {lock['base']['revision']}."
        raise RunError(FailureClass.INVALID_CONFIG, "ModelChanged", message, remedy)
    return Restored(_load(files, spec.training, compute), files, spec, lock["templateDate"])


def artifact_uri(place: str) -> str:
    """The URI of an artifact; what is no URI is a folder of this machine."""
    return place.rstrip("/") if "://" in place else f"file://{Path(place).absolute()}"


def _artifact(store: Store, reach: Reach) -> Store:
    """The store itself, or the artifact's where it is a run's root."""
    try:
        manifest = Manifest.model_validate_json(store.get_bytes(MANIFEST_FILE))
    except (NotFoundError, ValidationError):
        return store
    return open_store(manifest.uri, reach.storage)


def _read_lock(store: Store) -> dict[str, Any]:
    try:
        found = json.loads(store.get_bytes(LOCK_FILE))
        known = {key: found[key] for key in ("base", "run", "training")}
        told = found.get("templateDate")
        return known | {"templateDate": told and date.fromisoformat(told)}
    except NotFoundError as error:
        message = f"{store.uri} holds no {LOCK_FILE}, so it is no artifact of a Finetune"
        remedy = "Name the folder of an artifact (status.artifact.uri): a name of the hub is none."
        raise RunError(FailureClass.INVALID_CONFIG, "NoLockFile", message, remedy) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(store, error) from error


def _order(store: Store, lock: dict[str, Any], reach: Reach) -> RunSpec:
    try:
        training = TrainingSpec.model_validate(lock["training"])
        identity = RunIdentity.model_validate(lock["run"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _unreadable(store, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    trusted = training.model.trust_remote_code
    if trusted and not reach.trusted:
        message = f"the run of {store.uri} needed code that came with its model"
        remedy = "Read that code, then call with --trust-remote-code."
        raise RunError(FailureClass.INVALID_CONFIG, "RemoteCodeForbidden", message, remedy)
    model = BaseModelSource(uri=store.uri, trust_remote_code=trusted)
    return RunSpec(
        identity=identity,
        training=training.model_copy(update={"model": model}),
        output_uri="",  # Nothing is written; and an artifact's own folder may have any name.
        storage=reach.storage,
        model_credentials=reach.hub,
        scratch_directory=str(reach.scratch),
    )


def _load(files: ModelFiles, training: TrainingSpec, compute: Compute) -> Model:
    """An adapter on its base, stored as it was in training; a whole model as it is."""
    quantization = Quantization.NONE if files.adapter is None else training.method.quantization
    trusted = training.model.trust_remote_code
    base = load_base(files.model.folder, quantization, compute.dtype, compute.device, trusted)
    return base if files.adapter is None else continue_adapter(base, files.adapter, asked=None)


def _unreadable(store: Store, why: object) -> RunError:
    message = f"{LOCK_FILE} of {store.uri} cannot be read: {why}"
    return RunError(FailureClass.INVALID_CONFIG, "LockFileInvalid", message, "Use an artifact as it was published.")
