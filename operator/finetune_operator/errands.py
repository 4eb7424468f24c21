"""The Jobs of errands: one that reads a lost result from S3, one that removes what a run wrote. Pure.

Their order is an annotation of their pod: nothing else has to be made, or is left behind.
"""

from collections.abc import Iterator

from finetune_api import names
from finetune_api.names import Errand, Exit
from finetune_api.resource import Finetune

from finetune_operator.attempts import READING_SECONDS
from finetune_operator.manifests import Manifest, owned
from finetune_operator.object_names import run_name
from finetune_operator.observed import READING_LETTERS
from finetune_operator.order import run_root
from finetune_operator.pods import trainer_pod
from finetune_operator.settings import Settings
from finetune_operator.verdict import Attempt
from finetune_operator.volumes import SCRATCH, Mount, secret_mounts

SIZE = {"cpu": "500m", "memory": "256Mi", "ephemeral-storage": "100Mi"}
"""Requests and limits of an errand's pod: it imports the S3 client and holds no data."""

KEPT_SECONDS = 600
"""How long an errand that is over stays, for whoever wants to read its log."""

RETRIES = 4
"""Retries of an errand's pod. The Job controller waits 10 s before the first, and each time twice as long."""


def cleanup_name(finetune: Finetune) -> str:
    """Name of the Job that removes what the run wrote."""
    return f"{run_name(finetune)}-{Errand.CLEANUP}"


def reading_name(finetune: Finetune, attempt: Attempt) -> str:
    """Name of the Job that reads an attempt's result; `-result-train-1` would be too long, and look like an attempt."""
    letter = READING_LETTERS[attempt.stage]
    return f"{run_name(finetune)}-{Errand.RESULT}-{letter}{attempt.number}"


def cleanup_job(finetune: Finetune, settings: Settings) -> Manifest:
    """It belongs to nobody, since its Finetune goes before it does."""
    meta = finetune.metadata
    metadata: Manifest = {
        "name": cleanup_name(finetune),
        "namespace": meta.namespace,
        "labels": _labels(finetune) | {names.LABEL_CLEANUP_OF: meta.uid},
    }
    return _job(finetune, metadata, [Errand.CLEANUP.value], settings.cleanup_seconds, settings)


def reading_job(finetune: Finetune, attempt: Attempt, settings: Settings) -> Manifest:
    """Its labels name no attempt: whoever asks for the pods of one does not mean those that only read."""
    labels = _labels(finetune) | {names.LABEL_UID: finetune.metadata.uid}
    metadata = owned(finetune, reading_name(finetune, attempt), labels)
    return _job(finetune, metadata, [Errand.RESULT.value, "--stage", attempt.stage.value], READING_SECONDS, settings)


def _labels(finetune: Finetune) -> dict[str, str]:
    return {names.MANAGED_BY_LABEL: names.FIELD_MANAGER, names.LABEL_NAME: finetune.metadata.name}


def _job(finetune: Finetune, metadata: Manifest, command: list[str], seconds: int, settings: Settings) -> Manifest:
    order = run_root(finetune).model_dump_json(by_alias=True, exclude_none=True)
    hopeless = {"containerName": names.TRAINER_CONTAINER, "operator": "In", "values": [int(Exit.USER_ERROR)]}
    pod = trainer_pod(finetune, settings, [*command, "--run", names.RUN_FILE], SIZE, list(_mounts(finetune)))
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": RETRIES,
            "activeDeadlineSeconds": seconds,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": hopeless}]},
            "template": {
                "metadata": {"labels": metadata["labels"], "annotations": {names.ORDER_ANNOTATION: order}},
                "spec": pod,
            },
        },
    }


def _mounts(finetune: Finetune) -> Iterator[Mount]:
    order = {"path": "run.json", "fieldRef": {"fieldPath": f"metadata.annotations['{names.ORDER_ANNOTATION}']"}}
    yield Mount("run", names.RUN_DIRECTORY, {"downwardAPI": {"items": [order]}})
    yield SCRATCH
    yield from secret_mounts({"storage": finetune.spec.storage.credentials_secret_ref})
