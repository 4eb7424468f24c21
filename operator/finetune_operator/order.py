"""The order to the trainer: URIs that it can open itself, no Kubernetes words, no secrets. Pure."""

from math import ceil
from typing import Any

from finetune_api import names
from finetune_api.findings import Resolved
from finetune_api.names import Stage
from finetune_api.resource import Finetune, TrainingSpec
from finetune_api.run import GpuSize, ReportTarget, RunIdentity, RunRoot, RunSpec, StorageAccess

from finetune_operator.object_names import child_name, gang_name
from finetune_operator.quantities import bytes_of
from finetune_operator.settings import Settings
from finetune_operator.volumes import model_uri, mounted_uri, secret_folder

MEETING_SECONDS = 300
"""How long the pods of a gang may take to meet once the last one has started."""

LONGEST_MEETING_SECONDS = 7 * 86400
"""As long as torch can count: it keeps milliseconds in 32 bits in places."""


def run_root(finetune: Finetune) -> RunRoot:
    """Where the run keeps what it writes."""
    meta, spec = finetune.metadata, finetune.spec
    return RunRoot(
        identity=RunIdentity(namespace=meta.namespace, name=meta.name, uid=meta.uid),
        output_uri=f"{spec.output.uri.rstrip('/')}/{meta.namespace}/{meta.name}/{meta.uid}",
        storage=StorageAccess(
            endpoint=spec.storage.endpoint,
            region=spec.storage.region,
            credentials=secret_folder(finetune, "storage"),
            checksums=spec.storage.checksums,
        ),
        result_file=names.TERMINATION_LOG,
    )


def run_spec(finetune: Finetune, stage: Stage, attempt: int, settings: Settings, gpu: GpuSize | None = None) -> RunSpec:
    """What one attempt is told; `gpu` is what its pods will get, if known."""
    meta, spec = finetune.metadata, finetune.spec
    return RunSpec(
        **dict(run_root(finetune)),
        training=_training(finetune),
        attempt=attempt,
        resolved=finetune.status.resolved or Resolved(),
        model_credentials=secret_folder(finetune, "model"),
        tracking_credentials=secret_folder(finetune, "tracking"),
        card=_card(meta.annotations),
        report=ReportTarget(
            url=settings.report_address(names.REPORT_PATH),
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


def _meeting(finetune: Finetune, attempt: int) -> dict[str, Any]:
    """Where and how long the pods of a gang wait for one another.

    Whoever waits too long for the last of them to start is the operator, with the scheduler's words.
    """
    first_pod = f"{child_name(finetune, Stage.TRAIN, attempt)}-0"
    return {
        "rendezvous": f"{first_pod}.{gang_name(finetune)}:{names.RENDEZVOUS_PORT}",
        "meeting_seconds": min(finetune.spec.pending_deadline_seconds + MEETING_SECONDS, LONGEST_MEETING_SECONDS),
    }


def _training(finetune: Finetune) -> TrainingSpec:
    """The part of the spec that trains, with every URI one that the pod can open."""
    uri = mounted_uri(model_uri(finetune))
    training = TrainingSpec.model_validate(finetune.spec.to_json())
    return training.model_copy(
        update={
            "model": training.model.model_copy(
                update={"uri": uri, "finetune_ref": None, "credentials_secret_ref": None}
            ),
            "tracking": training.tracking.model_copy(update={"credentials_secret_ref": None}),
            "datasets": [
                dataset.model_copy(update={"uri": mounted_uri(dataset.uri, dataset)}) for dataset in training.datasets
            ],
        }
    )


def _card(annotations: dict[str, str]) -> dict[str, str]:
    prefix = names.CARD_ANNOTATION_PREFIX
    return {key.removeprefix(prefix): text for key, text in annotations.items() if key.startswith(prefix)}


def _threads(cpu: str) -> int:
    """CPU threads for a quantity such as `4`, `1.5` or `1500m`: as many as it pays for, rounded up."""
    return max(1, ceil(int(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)))
