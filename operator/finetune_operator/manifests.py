"""Finetune and settings to the objects of one attempt: its run ConfigMap, its Job, a gang's Service. Pure."""

from typing import Any

from finetune_api import names
from finetune_api.names import Stage
from finetune_api.placement import Queue, Trainer
from finetune_api.resource import Finetune
from finetune_api.run import GpuSize, RunSpec

from finetune_operator.object_names import child_name, gang_name
from finetune_operator.order import run_spec
from finetune_operator.pods import attempt_pod
from finetune_operator.settings import Settings

Manifest = dict[str, Any]


def attempt_manifests(
    finetune: Finetune, stage: Stage, attempt: int, settings: Settings, gpu: GpuSize | None = None
) -> list[Manifest]:
    """What an attempt is made of, in the order in which it is created; `gpu` is what its pods will get, if known."""
    is_gang = stage is Stage.TRAIN and finetune.spec.trainer.nodes > 1
    return [
        *([_gang_service(finetune)] if is_gang else []),
        _run_config_map(finetune, stage, run_spec(finetune, stage, attempt, settings, gpu)),
        _job(finetune, stage, attempt, settings),
    ]


def labels(finetune: Finetune, stage: Stage, attempt: int) -> dict[str, str]:
    """Labels of everything an attempt is made of."""
    return {
        names.MANAGED_BY_LABEL: names.FIELD_MANAGER,
        names.LABEL_NAME: finetune.metadata.name,
        names.LABEL_UID: finetune.metadata.uid,
        names.LABEL_STAGE: stage.value,
        names.LABEL_ATTEMPT: str(attempt),
    }


def owned(finetune: Finetune, name: str, labels: dict[str, str]) -> Manifest:
    """Metadata of a child: it goes with its Finetune."""
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": finetune.metadata.name,
        "uid": finetune.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    namespace = finetune.metadata.namespace
    return {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": [owner]}


def _metadata(finetune: Finetune, stage: Stage, attempt: int) -> Manifest:
    return owned(finetune, child_name(finetune, stage, attempt), labels(finetune, stage, attempt))


def _gang_service(finetune: Finetune) -> Manifest:
    """Headless: it only names pods, `<Job>-<index>.<Service>`, and before they are ready, since they meet then."""
    selected = {names.LABEL_UID: finetune.metadata.uid, names.LABEL_STAGE: Stage.TRAIN.value}
    named = {names.MANAGED_BY_LABEL: names.FIELD_MANAGER, names.LABEL_NAME: finetune.metadata.name}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owned(finetune, gang_name(finetune), named | selected),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": selected,
            "ports": [{"name": "rendezvous", "port": names.RENDEZVOUS_PORT, "protocol": "TCP"}],
        },
    }


def _run_config_map(finetune: Finetune, stage: Stage, run: RunSpec) -> Manifest:
    text = run.model_dump_json(by_alias=True, exclude_none=True, indent=2)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(finetune, stage, run.attempt),
        "immutable": True,
        "data": {"run.json": text},
    }


def _job(finetune: Finetune, stage: Stage, attempt: int, settings: Settings) -> Manifest:
    """One Job is one try: no retries of its own, and a lost pod is not replaced before it is really gone.

    The loss of any pod fails the Job, whose controller then deletes the others.
    """
    metadata, queue, trainer = _metadata(finetune, stage, attempt), finetune.spec.queue, finetune.spec.trainer
    metadata["labels"] |= queue_labels(queue)
    size, of_user = (trainer.nodes, trainer) if stage is Stage.TRAIN else (1, Trainer())
    pod_labels = of_user.pod_labels | labels(finetune, stage, attempt)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            # Whoever keeps the queue lets it go; what the operator itself stops, it deletes.
            **({"suspend": True} if queue.name else {}),
            "backoffLimit": 0,
            "completions": size,
            "parallelism": size,
            "completionMode": "Indexed",
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {
                    "labels": pod_labels,
                    **({"annotations": of_user.pod_annotations} if of_user.pod_annotations else {}),
                },
                "spec": attempt_pod(finetune, stage, attempt, settings),
            },
        },
    }


def queue_labels(queue: Queue) -> dict[str, str]:
    """Labels by which a queue finds a Job, and ranks it."""
    wanted = {names.QUEUE_LABEL: queue.name, names.QUEUE_PRIORITY_LABEL: queue.priority_class_name}
    return {label: value for label, value in wanted.items() if value}
