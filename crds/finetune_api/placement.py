"""Where the pods of a run go, and what they get."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from finetune_api import names
from finetune_api.base import Model, cel, rules
from finetune_api.fields import (
    CLASS_NAME_PATTERN,
    KEYS_HAVE_A_SIZE,
    LABEL_KEY_PATTERN,
    LABEL_VALUE_PATTERN,
    Cpu,
    LabelValue,
    Quantity,
)


class TolerationOperator(StrEnum):
    """How a toleration compares its key."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """What a taint does."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(Model):
    """A core/v1 Toleration."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "has(self.key) && self.key != '' || has(self.operator) && self.operator == 'Exists'",
                "a toleration without key needs operator Exists",
            ),
            cel(
                "!has(self.value) || self.value == '' || !has(self.operator) || self.operator == 'Equal'",
                "a toleration with operator Exists has no value",
            ),
            cel(
                "!has(self.tolerationSeconds) || has(self.effect) && self.effect == 'NoExecute'",
                "tolerationSeconds is only allowed with effect NoExecute",
            ),
        )
    )
    key: str | None = Field(default=None, max_length=317, json_schema_extra={"pattern": f"^$|{LABEL_KEY_PATTERN}"})
    """Taint key; empty with operator `Exists` tolerates everything."""
    operator: TolerationOperator | None = None
    """`Exists` or `Equal`."""
    value: LabelValue | None = None
    """Taint value."""
    effect: TaintEffect | None = None
    """`NoSchedule`, `PreferNoSchedule` or `NoExecute`; empty = all."""
    toleration_seconds: int | None = Field(default=None, ge=0, le=2_147_483_647)
    """How long `NoExecute` is tolerated, in seconds."""


def _not_reserved(field: str, *keys: str) -> dict[str, Any]:
    """The rule that a map of the user's sets nothing that others rely on."""
    prefixes = " || ".join(f"key.startsWith('{prefix}')" for prefix in names.RESERVED_PREFIXES)
    listed = ", ".join(f"'{key}'" for key in keys)
    reserved = f"{prefixes} || key in [{listed}]" if keys else prefixes
    owned = ", ".join([*(f"{prefix}*" for prefix in names.RESERVED_PREFIXES), *keys])
    return cel(f"!self.exists(key, {reserved})", f"trainer.{field} may not set {owned}: the operator does")


class Trainer(Model):
    """The train pods. `prepare` runs on CPU and takes the operator's own sizes."""

    nodes: int = Field(default=1, ge=1, le=64)
    """Pods that train together, as one gang: each has the size below, and the loss of one starts all of them again."""
    gpus_per_node: int = Field(default=1, ge=0, le=16)
    """GPUs of each pod, each with a process of its own that takes its share of every step; 0 trains on CPU."""
    gpu_resource: str = Field(
        default="nvidia.com/gpu",
        max_length=253,
        json_schema_extra={"pattern": r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"},
    )
    """Resource name of a GPU, such as `nvidia.com/gpu` or `amd.com/gpu`."""
    cpu: Cpu = "4"
    """CPU request and limit; on CPU also the number of threads."""
    memory: Quantity = "32Gi"
    """Memory request and limit."""
    ephemeral_storage: Quantity = "100Gi"
    """Disk request and limit, scratch folder included."""
    shared_memory: Quantity = "8Gi"
    """Size of /dev/shm; counts as memory."""
    node_selector: dict[str, LabelValue] = Field(
        default_factory=dict, max_length=32, json_schema_extra=rules(KEYS_HAVE_A_SIZE)
    )
    """Labels a node must have."""
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """Taints the pod tolerates."""
    priority_class_name: str = Field(default="", max_length=253, json_schema_extra={"pattern": CLASS_NAME_PATTERN})
    """PriorityClass of the pod."""
    runtime_class_name: str = Field(default="", max_length=253, json_schema_extra={"pattern": CLASS_NAME_PATTERN})
    """RuntimeClass of the pod."""
    scheduler_name: str = Field(default="", max_length=253, json_schema_extra={"pattern": CLASS_NAME_PATTERN})
    """Scheduler of the pod; empty = the default scheduler."""
    termination_grace_period_seconds: int = Field(default=300, ge=1, le=3600)
    """Seconds a pod gets to leave when it is stopped."""
    pod_labels: dict[str, LabelValue] = Field(
        default_factory=dict,
        max_length=32,
        json_schema_extra=rules(KEYS_HAVE_A_SIZE, _not_reserved("podLabels", *names.RESERVED_POD_LABELS)),
    )
    """Further labels of the train pods, for schedulers and meshes that ask for some."""
    pod_annotations: dict[str, Annotated[str, Field(max_length=4096)]] = Field(
        default_factory=dict,
        max_length=32,
        json_schema_extra=rules(KEYS_HAVE_A_SIZE, _not_reserved("podAnnotations")),
    )
    """Annotations of the train pods, such as Volcano's `scheduling.volcano.sh/queue-name`."""


class Queue(Model):
    """A queue that decides when the run may take its resources, such as Kueue's."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.priorityClassName == '' || self.name != ''",
                "queue.priorityClassName is only allowed with queue.name",
            )
        )
    )
    name: str = Field(default="", max_length=63, json_schema_extra={"pattern": LABEL_VALUE_PATTERN})
    """LocalQueue of the namespace: the Jobs carry its name and are created suspended. Empty = no queue."""
    priority_class_name: str = Field(default="", max_length=63, json_schema_extra={"pattern": LABEL_VALUE_PATTERN})
    """WorkloadPriorityClass of the Jobs. One that replaces another reaches Jobs that are still in the queue."""


class OnStall(StrEnum):
    """What follows when nothing is heard of a trainer."""

    REPORT = "Report"
    """Condition `Progressing` and an Event say so; the run goes on."""
    RESTART = "Restart"
    """The attempt is stopped, and the next one goes on from the checkpoint: an infrastructure failure."""


class Guards(Model):
    """What is watched while the run trains. Training whose loss is no number always ends it."""

    stall_seconds: int = Field(default=1800, ge=0, le=31_536_000)
    """How long nothing may be heard of the trainer: no step, and nothing new that it does. Longer than loading the
    weights, or one evaluation, takes. 0 = for ever."""
    idle_percent: int = Field(default=5, ge=0, le=100)
    """Condition `GpuBusy` is false while GPUs have computed for less than so much of the last 10 minutes. 0 = off."""
    on_stall: OnStall = OnStall.REPORT
    """`Report` tells it, `Restart` also stops the attempt, which then counts against `retryLimit`."""
