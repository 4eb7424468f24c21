"""What the pods of a run mount, and where they see it. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api import names
from finetune_api.fields import SecretRef
from finetune_api.resource import Finetune
from finetune_api.run import SecretFolder
from finetune_api.sources import Dataset

from finetune_operator.settings import Settings

TOKEN_SECONDS = 3600
"""Life of the projected report token; the kubelet renews it in time."""


@dataclass(frozen=True)
class Mount:
    """A volume and where it is seen."""

    name: str
    path: str
    source: dict[str, Any]
    read_only: bool = True


SCRATCH = Mount("scratch", names.SCRATCH_DIRECTORY, {"emptyDir": {}}, read_only=False)
"""Room for everything that a pod writes: its root file system is read-only."""


def attempt_mounts(finetune: Finetune, config_map: str) -> Iterator[Mount]:
    """Every volume of a pod. Secrets and ConfigMaps of the user are optional: a missing one fails in the trainer, at
    once and by name, instead of hanging in ContainerCreating."""
    spec = finetune.spec
    yield Mount("run", names.RUN_DIRECTORY, {"configMap": {"name": config_map}})
    token = {"audience": names.REPORT_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
    yield Mount("token", names.TOKEN_DIRECTORY, {"projected": {"sources": [{"serviceAccountToken": token}]}})
    yield SCRATCH
    memory = {"medium": "Memory", "sizeLimit": spec.trainer.shared_memory}
    yield Mount("shared-memory", "/dev/shm", {"emptyDir": memory}, read_only=False)
    yield from secret_mounts(secrets_of(finetune))
    yield from _data_mounts(finetune)


def report_ca_mounts(settings: Settings) -> Iterator[Mount]:
    """The authority of the progress endpoint; a missing one costs the progress, not the run."""
    if name := settings.report_ca_config_map:
        items = [{"key": names.REPORT_CA_KEY, "path": names.REPORT_CA_KEY}]
        source = {"configMap": {"name": name, "items": items, "optional": True}}
        yield Mount("report-ca", names.REPORT_CA_DIRECTORY, source)


def secret_mounts(secrets: dict[str, SecretRef | None]) -> Iterator[Mount]:
    """The Secrets of each purpose, where the trainer looks for them."""
    for purpose, ref in secrets.items():
        if ref:
            source = {"secret": {"secretName": ref.name, "optional": True}}
            yield Mount(f"secret-{purpose}", _secret_directory(purpose), source)


def secret_folder(finetune: Finetune, purpose: str) -> SecretFolder | None:
    """Where the Secret of this purpose is mounted, and what to call it."""
    ref = secrets_of(finetune)[purpose]
    if ref is None:
        return None
    source = f"Secret {finetune.metadata.namespace}/{ref.name}"
    return SecretFolder(directory=_secret_directory(purpose), source=source)


def secrets_of(finetune: Finetune) -> dict[str, SecretRef | None]:
    """The Secrets that a pod may mount, by purpose."""
    spec = finetune.spec
    return {
        "storage": spec.storage.credentials_secret_ref,
        "model": spec.model.credentials_secret_ref,
        "tracking": spec.tracking.credentials_secret_ref,
    }


def _secret_directory(purpose: str) -> str:
    return f"{names.SECRETS_DIRECTORY}/{purpose}"


def _data_mounts(finetune: Finetune) -> Iterator[Mount]:
    uris = [*(dataset.uri for dataset in finetune.spec.datasets), model_uri(finetune)]
    claims = sorted({uri.removeprefix("pvc://").split("/")[0] for uri in uris if uri.startswith("pvc://")})
    for number, claim in enumerate(claims):
        source = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        yield Mount(f"claim-{number}", f"{names.VOLUMES_DIRECTORY}/{claim}", source)
    for number, dataset in enumerate(finetune.spec.datasets):
        if dataset.uri.startswith("configmap://"):
            name = dataset.uri.removeprefix("configmap://").split("/")[0]
            source = {"configMap": {"name": name, "optional": True}}
            yield Mount(f"dataset-{number}", f"{names.DATASETS_DIRECTORY}/{dataset.name}", source)


def mounted_uri(uri: str, dataset: Dataset | None = None) -> str:
    """The `file://` URI under which a volume is seen in the pod; any other URI as it is."""
    scheme, _, rest = uri.partition("://")
    name, _, path = rest.partition("/")
    if scheme == "pvc":
        return f"file://{names.VOLUMES_DIRECTORY}/{name}/{path}"
    if scheme == "configmap" and dataset:
        return f"file://{names.DATASETS_DIRECTORY}/{dataset.name}/{path}"
    return uri


def as_written(text: str, finetune: Finetune) -> str:
    """What a trainer says, with the URIs that the user wrote in place of those that its pod saw."""
    uris = {mounted_uri(dataset.uri, dataset): dataset.uri for dataset in finetune.spec.datasets}
    uris[mounted_uri(model_uri(finetune))] = model_uri(finetune)
    for seen in sorted(uris, key=len, reverse=True):  # One may be the beginning of another.
        text = text.replace(seen, uris[seen]) if seen else text
    return text


def model_uri(finetune: Finetune) -> str:
    """Where the base model lies: as it was resolved, or as it was written; empty where it is another run's."""
    resolved = finetune.status.resolved
    return (resolved and resolved.model_uri) or finetune.spec.model.uri or ""
