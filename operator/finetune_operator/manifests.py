"""Finetune and settings to the objects of one attempt: its run ConfigMap, its Job, a gang's Service. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from finetune_api import names
from finetune_api.fields import SecretRef
from finetune_api.names import Stage
from finetune_api.placement import Queue, Trainer
from finetune_api.resource import Finetune, TrainingSpec
from finetune_api.run import GpuSize, ReportTarget, RunIdentity, RunRoot, RunSpec, SecretFolder, StorageAccess
from finetune_api.sources import Dataset
from finetune_api.status import Resolved

from finetune_operator.quantities import bytes_of
from finetune_operator.settings import Settings

Manifest = dict[str, Any]

NON_ROOT_UID = 65532
"""User and group of every pod we make."""

TOKEN_SECONDS = 3600
"""Life of the projected report token; the kubelet renews it in time."""


MEETING_SECONDS = 300
"""How long the pods of a gang may take to meet once the last one has started."""

LONGEST_MEETING_SECONDS = 7 * 86400
"""As long as torch can count: it keeps milliseconds in 32 bits in places."""


@dataclass(frozen=True)
class Mount:
    """A volume and where it is seen."""

    name: str
    path: str
    source: Manifest
    read_only: bool = True


SCRATCH = Mount("scratch", names.SCRATCH_DIRECTORY, {"emptyDir": {}}, read_only=False)
"""Room for everything that a pod writes: its root file system is read-only."""


def child_name(finetune: Finetune, stage: Stage, attempt: int) -> str:
    """Name of an attempt's Job and ConfigMap: it follows from the Finetune, so a second create finds the first."""
    return f"{finetune.metadata.name}-{finetune.metadata.uid[:8]}-{stage}-{attempt}"


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


def gang_name(finetune: Finetune) -> str:
    """Name of the Service that gives the pods of a gang their DNS names: one for all attempts."""
    return f"{finetune.metadata.name}-{finetune.metadata.uid[:8]}"


def run_root(finetune: Finetune) -> RunRoot:
    """Where the run keeps what it writes."""
    meta, spec = finetune.metadata, finetune.spec
    return RunRoot(
        identity=RunIdentity(namespace=meta.namespace, name=meta.name, uid=meta.uid),
        output_uri=f"{spec.output.uri.rstrip('/')}/{meta.namespace}/{meta.name}/{meta.uid}",
        storage=StorageAccess(
            endpoint=spec.storage.endpoint,
            region=spec.storage.region,
            credentials=_folder(finetune, "storage"),
            checksums=spec.storage.checksums,
        ),
        result_file=names.TERMINATION_LOG,
    )


def run_spec(finetune: Finetune, stage: Stage, attempt: int, settings: Settings, gpu: GpuSize | None = None) -> RunSpec:
    """The order to the trainer: URIs that it can open itself, no Kubernetes words, no secrets."""
    meta, spec = finetune.metadata, finetune.spec
    return RunSpec(
        **dict(run_root(finetune)),
        training=_training(finetune),
        attempt=attempt,
        resolved=finetune.status.resolved or Resolved(),
        model_credentials=_folder(finetune, "model"),
        tracking_credentials=_folder(finetune, "tracking"),
        card=_card(meta.annotations),
        report=ReportTarget(
            url=_report_url(settings, names.REPORT_PATH),
            token_file=names.TOKEN_FILE,
            ca_file=names.REPORT_CA_FILE if settings.report_ca_config_map else None,
        ),
        scratch_directory=names.SCRATCH_DIRECTORY,
        gpus=spec.trainer.gpus_per_node if stage is Stage.TRAIN else 0,
        gpu=gpu,
        processes=max(1, spec.trainer.gpus_per_node),
        nodes=spec.trainer.nodes,
        **(_meeting(finetune, attempt) if stage is Stage.TRAIN and spec.trainer.nodes > 1 else {}),
        threads=_threads(spec.trainer.cpu if stage is Stage.TRAIN else settings.prepare.cpu),
        memory_bytes=bytes_of(spec.trainer.memory if stage is Stage.TRAIN else settings.prepare.memory),
        memory_rung=finetune.status.memory_rung if stage is Stage.TRAIN else 0,
        grace_seconds=spec.trainer.termination_grace_period_seconds,
    )


def _report_url(settings: Settings, path: str) -> str:
    return settings.report_url.rstrip("/") + path


def _meeting(finetune: Finetune, attempt: int) -> dict[str, Any]:
    """Where and how long the pods of a gang wait for one another.

    Whoever waits too long for the last of them to start is the operator, with the scheduler's words.
    """
    first_pod = f"{child_name(finetune, Stage.TRAIN, attempt)}-0"
    return {
        "rendezvous": f"{first_pod}.{gang_name(finetune)}:{names.RENDEZVOUS_PORT}",
        "meeting_seconds": min(finetune.spec.pending_deadline_seconds + MEETING_SECONDS, LONGEST_MEETING_SECONDS),
    }


def labels(finetune: Finetune, stage: Stage, attempt: int) -> dict[str, str]:
    """Labels of everything an attempt is made of."""
    return {
        names.MANAGED_BY_LABEL: names.FIELD_MANAGER,
        names.LABEL_NAME: finetune.metadata.name,
        names.LABEL_UID: finetune.metadata.uid,
        names.LABEL_STAGE: stage.value,
        names.LABEL_ATTEMPT: str(attempt),
    }


def _training(finetune: Finetune) -> TrainingSpec:
    """The part of the spec that trains, with every URI one that the pod can open."""
    resolved = finetune.status.resolved
    uri = _mounted((resolved and resolved.model_uri) or finetune.spec.model.uri or "")
    training = TrainingSpec.model_validate(finetune.spec.to_json())
    return training.model_copy(
        update={
            "model": training.model.model_copy(
                update={"uri": uri, "finetune_ref": None, "credentials_secret_ref": None}
            ),
            "tracking": training.tracking.model_copy(update={"credentials_secret_ref": None}),
            "datasets": [
                dataset.model_copy(update={"uri": _mounted(dataset.uri, dataset)}) for dataset in training.datasets
            ],
        }
    )


def _mounted(uri: str, dataset: Dataset | None = None) -> str:
    """The `file://` URI under which a volume is seen in the pod; any other URI as it is."""
    scheme, _, rest = uri.partition("://")
    name, _, path = rest.partition("/")
    if scheme == "pvc":
        return f"file://{names.VOLUMES_DIRECTORY}/{name}/{path}"
    if scheme == "configmap" and dataset:
        return f"file://{names.DATASETS_DIRECTORY}/{dataset.name}/{path}"
    return uri


def _folder(finetune: Finetune, purpose: str) -> SecretFolder | None:
    """Where the Secret of this purpose is mounted, and what to call it."""
    ref = _secrets(finetune)[purpose]
    if ref is None:
        return None
    source = f"Secret {finetune.metadata.namespace}/{ref.name}"
    return SecretFolder(directory=f"{names.SECRETS_DIRECTORY}/{purpose}", source=source)


def _secrets(finetune: Finetune) -> dict[str, SecretRef | None]:
    """The Secrets that a pod may mount, by purpose."""
    spec = finetune.spec
    return {
        "storage": spec.storage.credentials_secret_ref,
        "model": spec.model.credentials_secret_ref,
        "tracking": spec.tracking.credentials_secret_ref,
    }


def _card(annotations: dict[str, str]) -> dict[str, str]:
    prefix = names.CARD_ANNOTATION_PREFIX
    return {key.removeprefix(prefix): text for key, text in annotations.items() if key.startswith(prefix)}


def _threads(cpu: str) -> int:
    """CPU threads for a quantity such as `4`, `1.5` or `1500m`: as many as it pays for, rounded up."""
    return max(1, ceil(int(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)))


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
                "spec": _pod(finetune, stage, attempt, settings),
            },
        },
    }


def queue_labels(queue: Queue) -> dict[str, str]:
    """Labels by which a queue finds a Job, and ranks it."""
    wanted = {names.QUEUE_LABEL: queue.name, names.QUEUE_PRIORITY_LABEL: queue.priority_class_name}
    return {label: value for label, value in wanted.items() if value}


def _pod(finetune: Finetune, stage: Stage, attempt: int, settings: Settings) -> Manifest:
    mounts = [*_mounts(finetune, child_name(finetune, stage, attempt)), *_report_ca_mounts(settings)]
    size = _train_size(finetune) if stage is Stage.TRAIN else _prepare_size(settings)
    placement = _placement(finetune) if stage is Stage.TRAIN else {}
    return trainer_pod(finetune, settings, [stage.value, "--run", names.RUN_FILE], size, mounts) | placement


def trainer_pod(
    finetune: Finetune, settings: Settings, arguments: list[str], size: dict[str, str], mounts: list[Mount]
) -> Manifest:
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


def _container(settings: Settings, arguments: list[str], size: dict[str, str], mounts: list[Mount]) -> Manifest:
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


def _environment(settings: Settings) -> Iterator[Manifest]:
    yield {"name": names.ENV_WRITER_ID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
    yield {"name": names.ENV_LOG_FORMAT, "value": settings.log_format}
    # An image of somebody else's that trains with transformers reports by itself; ours has words of its own.
    yield {"name": names.ENV_KUBEFLOW_URL, "value": _report_url(settings, names.KUBEFLOW_PATH)}
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


def _placement(finetune: Finetune) -> Manifest:
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


def _mounts(finetune: Finetune, run_name: str) -> Iterator[Mount]:
    """Every volume of a pod. Secrets and ConfigMaps of the user are optional: a missing one fails in the trainer, at
    once and by name, instead of hanging in ContainerCreating."""
    spec = finetune.spec
    yield Mount("run", names.RUN_DIRECTORY, {"configMap": {"name": run_name}})
    token = {"audience": names.REPORT_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
    yield Mount("token", names.TOKEN_DIRECTORY, {"projected": {"sources": [{"serviceAccountToken": token}]}})
    yield SCRATCH
    memory = {"medium": "Memory", "sizeLimit": spec.trainer.shared_memory}
    yield Mount("shared-memory", "/dev/shm", {"emptyDir": memory}, read_only=False)
    yield from secret_mounts(_secrets(finetune))
    yield from _data_mounts(finetune)


def _report_ca_mounts(settings: Settings) -> Iterator[Mount]:
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
            yield Mount(f"secret-{purpose}", f"{names.SECRETS_DIRECTORY}/{purpose}", source)


def _data_mounts(finetune: Finetune) -> Iterator[Mount]:
    resolved = finetune.status.resolved
    uris = [dataset.uri for dataset in finetune.spec.datasets]
    uris.append((resolved and resolved.model_uri) or finetune.spec.model.uri or "")
    claims = sorted({uri.removeprefix("pvc://").split("/")[0] for uri in uris if uri.startswith("pvc://")})
    for number, claim in enumerate(claims):
        source = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        yield Mount(f"claim-{number}", f"{names.VOLUMES_DIRECTORY}/{claim}", source)
    for number, dataset in enumerate(finetune.spec.datasets):
        if dataset.uri.startswith("configmap://"):
            name = dataset.uri.removeprefix("configmap://").split("/")[0]
            source = {"configMap": {"name": name, "optional": True}}
            yield Mount(f"dataset-{number}", f"{names.DATASETS_DIRECTORY}/{dataset.name}", source)
