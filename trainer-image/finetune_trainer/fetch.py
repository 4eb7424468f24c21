"""The base model's files, from S3, a folder or the hub, into one local folder.

Only what a model needs is taken: JSON, tokenizer files and safetensors of the top level. Never pickle; code only with
model.trustRemoteCode.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from finetune_api.names import LOCK_FILE, FailureClass
from finetune_api.run import RunSpec

from finetune_trainer.errors import RunError, quoted
from finetune_trainer.hub import HubRepository
from finetune_trainer.side_by_side import side_by_side
from finetune_trainer.store import NotFoundError, Store, open_store

SMALL_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
WEIGHTS_SUFFIX = ".safetensors"
CODE_SUFFIX = ".py"

CONFIG_FILE = "config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
DIFFUSERS_FILE = "model_index.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"

BASE_FOLDER = "base-model"
"""Where an adapter's base goes, beside the adapter."""


@dataclass(frozen=True)
class ModelFiles:
    """A model on the local disk."""

    folder: Path
    """Config and tokenizer, and weights if they were asked for."""
    uri: str
    """Where it came from, in the user's words: never the path that a volume has in this pod."""
    revision: str
    """Commit of a hub model, else a digest over its files."""
    base: "ModelFiles | None" = None
    """For an adapter: the model it belongs to."""

    @property
    def model(self) -> "ModelFiles":
        """The whole model: an adapter's base, else this one."""
        return self.base or self

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter to train further, where there is one."""
        return self.folder if self.base else None


class Source(Protocol):
    """Where a model lies."""

    uri: str
    revision: str

    def names(self) -> list[str]:
        """Names of all files."""

    def download(self, name: str, folder: Path) -> None:
        """Write one file to `folder`."""


class StoredModel:
    """A model in S3 or in a folder."""

    def __init__(self, store: Store, trusted: bool = False) -> None:
        self.store = store
        self.uri = store.uri
        try:
            objects = store.list()
        except NotFoundError as error:
            raise _not_found(f"{store.uri} is not there: {error}") from error
        self.files = [item.key for item in objects]
        self.revision = self._digest({item.key: item.size for item in objects if _is_wanted(item.key, trusted)})

    def names(self) -> list[str]:
        """Keys below the model's prefix."""
        return self.files

    def download(self, name: str, folder: Path) -> None:
        """Write one file to `folder`."""
        try:
            self.store.get_file(name, folder / name)
        except NotFoundError as error:
            raise _not_found(f"{error}: it was deleted while the run read the model") from error

    def _digest(self, sizes: dict[str, int]) -> str:
        """A digest over names, sizes and fingerprints of the files that are used."""
        marks = side_by_side(self.store.fingerprint, sizes)
        lines = [f"{name} {size} {mark}\n" for (name, size), mark in zip(sizes.items(), marks, strict=True)]
        return "sha256:" + hashlib.sha256(os.fsencode("".join(sorted(lines)))).hexdigest()


def fetch_model(spec: RunSpec, scratch: Path, weights: bool) -> ModelFiles:
    """Bring the base model into a folder below `scratch`; without `weights` only config and tokenizer.

    An adapter brings its base along. Raises RunError: ModelNotFound, ModelUnsupported, NoSafetensors, ModelChanged,
    AccessDenied or Infrastructure.
    """
    uri = spec.training.model.uri or spec.resolved.model_uri
    if not uri:
        raise _not_found("the run names no model")
    known = spec.resolved.model_revision
    files = _fetch(spec, uri, known or spec.training.model.revision, scratch / "model", weights)
    if known is not None and files.revision != known:
        message = f"{uri} is not what it was when the data was prepared: revision {files.revision}, not {known}"
        remedy = "Leave a model alone while runs use it; create the Finetune again."
        raise RunError(FailureClass.INVALID_CONFIG, "ModelChanged", message, remedy)
    return replace(files, uri=spec.resolved.model_uri or files.uri)


def _fetch(spec: RunSpec, uri: str, revision: str | None, folder: Path, weights: bool) -> ModelFiles:
    source = _open(spec, uri, revision)
    names = source.names()
    is_adapter = ADAPTER_CONFIG_FILE in names and CONFIG_FILE not in names
    if is_adapter and folder.name == BASE_FOLDER:
        message = f"{uri}, the base model of an adapter, is an adapter itself"
        raise RunError(FailureClass.INVALID_CONFIG, "ModelUnsupported", message, "Start from a merged artifact.")
    _check_contents(source.uri, names, is_adapter)
    folder.mkdir(parents=True, exist_ok=True)
    trusted = spec.training.model.trust_remote_code
    small = [name for name in names if _is_wanted(name, trusted) and not name.endswith(WEIGHTS_SUFFIX)]
    _download(source, small, folder)
    if weights or is_adapter:  # The check without weights needs an adapter's shape, and it is small.
        _download(source, _weight_files(folder, names, is_adapter), folder)
    base = _fetch_base(spec, folder, source.uri, weights) if is_adapter else None
    return ModelFiles(folder, source.uri, source.revision, base)


def _fetch_base(spec: RunSpec, adapter: Path, uri: str, weights: bool) -> ModelFiles:
    """The model that an artifact's lock file names."""
    known_as = spec.resolved.model_uri or uri
    try:
        lock = json.loads((adapter / LOCK_FILE).read_text(encoding="utf-8"))
        base_uri, revision = str(lock["base"]["uri"]), lock["base"]["revision"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        message = f"{known_as} is an adapter without a readable {LOCK_FILE}, so its base model is not known"
        remedy = f"Choose an artifact with {LOCK_FILE}, or a whole model."
        raise RunError(FailureClass.INVALID_CONFIG, "NoLockFile", message, remedy) from error
    _check_base(known_as, base_uri)
    return _fetch(spec, base_uri, revision, adapter.with_name(BASE_FOLDER), weights)


def _check_base(adapter: str, base: str) -> None:
    """A lock file may come from anybody: only one that lies in a folder of this machine names another such folder."""
    reachable = ("hf://", "s3://", "file://") if adapter.startswith("file://") else ("hf://", "s3://")
    if base.startswith(reachable):
        return
    message = (
        f"{LOCK_FILE} of {adapter} names '{base}' as its base model, but only hf:// and s3:// can be reached from there"
    )
    remedy = "Start from a merged artifact (output.artifact: merged), or train the adapter again from a base in S3."
    raise RunError(FailureClass.INVALID_CONFIG, "BaseModelUnreachable", message, remedy)


def _open(spec: RunSpec, uri: str, revision: str | None) -> Source:
    if uri.startswith("hf://"):
        return HubRepository(uri.removeprefix("hf://"), revision, spec.model_credentials)
    return StoredModel(open_store(uri, spec.storage), spec.training.model.trust_remote_code)


def _check_contents(uri: str, names: list[str], is_adapter: bool) -> None:
    if not names:
        raise _not_found(f"there is nothing at {uri}")
    if DIFFUSERS_FILE in names:
        message = f"{uri} is an image model ({DIFFUSERS_FILE}), not a decoder that generates text"
        raise RunError(FailureClass.INVALID_CONFIG, "ModelUnsupported", message, "Choose a causal language model.")
    if CONFIG_FILE not in names and not is_adapter:
        raise _not_found(f"{uri} holds no {CONFIG_FILE}; it holds {quoted(names, most=5)}")
    wanted = ADAPTER_WEIGHTS_FILE if is_adapter else WEIGHTS_SUFFIX
    if not any(name.endswith(wanted) and "/" not in name for name in names):
        others = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5"))]
        instead = f"; it holds {quoted(others, most=3)}" if others else ""
        message = f"{uri} holds no {wanted.removeprefix('.')} file{instead}"
        remedy = "Save the model with safetensors (transformers: save_pretrained), and upload it again."
        raise RunError(FailureClass.INVALID_CONFIG, "NoSafetensors", message, remedy)


def _weight_files(folder: Path, names: list[str], is_adapter: bool) -> list[str]:
    """The weight files that loading reads: a repository may hold the same weights twice, under other names."""
    if is_adapter:
        return [ADAPTER_WEIGHTS_FILE]
    if WEIGHTS_FILE in names:
        return [WEIGHTS_FILE]
    if WEIGHTS_INDEX_FILE not in names:
        return [name for name in names if name.endswith(WEIGHTS_SUFFIX) and "/" not in name]
    shards = set(_weight_map(folder / WEIGHTS_INDEX_FILE).values())
    missing = shards - set(names)
    if missing:
        raise _not_found(f"{WEIGHTS_INDEX_FILE} names {quoted(missing, most=3)}, which is not there")
    return sorted(shards)


def _weight_map(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): str(PurePosixPath(shard).name) for tensor, shard in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path.name} of the model is not readable: {error}"
        raise RunError(FailureClass.INVALID_CONFIG, "ModelInvalid", message, "Upload the model again.") from error


def _download(source: Source, names: Iterable[str], folder: Path) -> None:
    side_by_side(lambda name: source.download(name, folder), names)


def _is_wanted(name: str, trusted: bool) -> bool:
    suffixes = (*SMALL_SUFFIXES, WEIGHTS_SUFFIX, *([CODE_SUFFIX] if trusted else []))
    return "/" not in name and name.endswith(suffixes)


def _not_found(message: str) -> RunError:
    remedy = "Correct model.uri: it must name a folder with config.json, tokenizer and safetensors."
    return RunError(FailureClass.INVALID_CONFIG, "ModelNotFound", message, remedy)
