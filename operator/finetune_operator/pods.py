"""The pods of a run: one container of the trainer, without privileges, sized and placed as the Finetune says. Pure."""

from collections.abc import Iterator
from typing import Any

from finetune_api import names
from finetune_api.names import Stage
from finetune_api.resource import Finetune

from finetune_operator.object_names import child_name, gang_name
from finetune_operator.settings import Settings
from finetune_operator.volumes import Mount, attempt_mounts, report_ca_mounts

PodSpec = dict[str, Any]

NON_ROOT_UID = 65532
"""User and group of every pod we make."""


def attempt_pod(finetune: Finetune, stage: Stage, attempt: int, settings: Settings) -> PodSpec:
    """The spec of an attempt's pod."""
    mounts = [*attempt_mounts(finetune, child_name(finetune, stage, attempt)), *report_ca_mounts(settings)]
    size = _train_size(finetune) if stage is Stage.TRAIN else _prepare_size(settings)
    placement = _placement(finetune) if stage is Stage.TRAIN else {}
    return trainer_pod(finetune, settings, [stage.value, "--run", names.RUN_FILE], size, mounts) | placement


def trainer_pod(
    finetune: Finetune, settings: Settings, arguments: list[str], size: dict[str, str], mounts: list[Mount]
) -> PodSpec:
    """The spec of a pod that runs one command of the trainer, as a user without any privilege."""
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "serviceAccountName": finetune.spec.storage.service_account_name or "default",
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": NON_ROOT_UID,
            "runAsGroup": NON_ROOT_UID,
            "fsGroup": NON_ROOT_UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(settings, arguments, size, mounts)],
        "volumes": [{"name": mount.name, **mount.source} for mount in mounts],
    }


def _container(settings: Settings, arguments: list[str], size: dict[str, str], mounts: list[Mount]) -> dict[str, Any]:
    return {
        "name": names.TRAINER_CONTAINER,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": arguments,
        "env": list(_environment(settings)),
        "resources": {"requests": size, "limits": size},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": mount.name, "mountPath": mount.path, **({"readOnly": True} if mount.read_only else {})}
            for mount in mounts
        ],
    }


def _environment(settings: Settings) -> Iterator[dict[str, Any]]:
    yield {"name": names.ENV_WRITER_ID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
    yield {"name": names.ENV_LOG_FORMAT, "value": settings.log_format}
    # An image of somebody else's that trains with transformers reports by itself; ours has words of its own.
    yield {"name": names.ENV_KUBEFLOW_URL, "value": settings.report_address(names.KUBEFLOW_PATH)}
    yield {"name": names.ENV_KUBEFLOW_TOKEN_FILE, "value": names.TOKEN_FILE}
    if settings.report_ca_config_map:
        yield {"name": names.ENV_KUBEFLOW_CA_FILE, "value": names.REPORT_CA_FILE}
    # The root file system is read-only: every library that wants a home, a cache or a temporary folder gets scratch.
    for variable in ("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME"):
        yield {"name": variable, "value": names.SCRATCH_DIRECTORY}


def _prepare_size(settings: Settings) -> dict[str, str]:
    size = settings.prepare
    return {"cpu": size.cpu, "memory": size.memory, "ephemeral-storage": size.ephemeral_storage}


def _train_size(finetune: Finetune) -> dict[str, str]:
    trainer = finetune.spec.trainer
    size = {"cpu": trainer.cpu, "memory": trainer.memory, "ephemeral-storage": trainer.ephemeral_storage}
    return size | ({trainer.gpu_resource: str(trainer.gpus_per_node)} if trainer.gpus_per_node else {})


def _placement(finetune: Finetune) -> dict[str, Any]:
    """Where the train pod may run. Fields that were left empty are left out, so that the cluster's defaults apply."""
    trainer = finetune.spec.trainer
    wanted = {
        "nodeSelector": trainer.node_selector,
        "tolerations": [toleration.to_json() for toleration in trainer.tolerations],
        "priorityClassName": trainer.priority_class_name,
        "runtimeClassName": trainer.runtime_class_name,
        "schedulerName": trainer.scheduler_name,
        "terminationGracePeriodSeconds": trainer.termination_grace_period_seconds,
        "subdomain": gang_name(finetune) if trainer.nodes > 1 else "",
    }
    return {key: value for key, value in wanted.items() if value}
