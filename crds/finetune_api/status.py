"""The status of a Finetune: everything that happened, in at most 16 KiB.

Each write is one server-side apply of the whole status. What cannot be derived from the children (attempts, restarts,
results of pods that may be gone) is read back from here.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.base import Model
from finetune_api.fields import LARGEST_COUNT, Count, Instant
from finetune_api.findings import (
    ArtifactStatus,
    DataStatus,
    EffectiveHyperparameters,
    EvaluationStatus,
    PlanStatus,
    Resolved,
    TrainingEstimate,
)
from finetune_api.money import CostStatus
from finetune_api.names import STATUS_HISTORY_ROWS, ConditionType, FailureClass, Phase, Stage, StageState
from finetune_api.progress import BestStatus, CheckpointStatus, HistoryRow, Metrics, Progress

Text = Annotated[str, Field(max_length=1024)]
Word = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
"""A reason, as metav1.Condition wants it, and shorter."""


class ConditionStatus(StrEnum):
    """Status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Model):
    """A metav1.Condition."""

    type: ConditionType
    status: ConditionStatus
    reason: Word
    """CamelCase word for programs."""
    message: Annotated[str, Field(max_length=2048)] = ""
    """One sentence for people."""
    last_transition_time: Instant
    """When `status` last changed."""
    observed_generation: Count | None = None
    """Generation of the spec this was decided from."""


class Failure(Model):
    """Why the run, or its newest attempt, failed."""

    failure_class: FailureClass = Field(alias="class")
    """Kind of failure; it decides what happens next."""
    reason: Word
    """CamelCase word for programs."""
    message: Annotated[str, Field(max_length=2048)]
    """What is wrong, where, and the limit."""
    remedy: Annotated[str, Field(max_length=1024)] = ""
    """What to do."""
    exit_code: int | None = Field(default=None, ge=-(2**31), le=2**31 - 1)
    """Exit code of the trainer, where there was one."""


class StageStatus(Model):
    """One stage of the run."""

    name: Stage
    state: StageState
    attempt: int = Field(default=1, ge=1, le=LARGEST_COUNT)
    """Number of the newest try; its Job carries it in its name."""
    started_at: Instant | None = None
    """When the newest attempt started: its pod, or the last pod of its gang."""
    finished_at: Instant | None = None
    """When its newest attempt ended."""
    left_at: Instant | None = None
    """When the last pod of a stopped attempt was gone: until then it holds its GPUs."""
    gathered_seconds: Count = 0
    """Pod-seconds for which the pods of a gang have waited for the last one of them to start."""
    waiting_since: Instant | None = None
    """Since when its newest attempt has been asked for; it counts until the pod starts."""
    reading_since: Instant | None = None
    """Since when another Job is to read from S3 what a complete attempt came to, whose own words are lost."""
    waited_seconds: Count | None = None
    """How long its newest attempt had waited to start when it was given up; `spec.pendingDeadlineSeconds` bounds it."""
    cause: Failure | None = None
    """What a pod of this attempt died of, or was taken away for, noted when seen: a pod that is gone tells nothing."""
    message: Text | None = None
    """What it is doing or waiting for, in the scheduler's or kubelet's own words where they have some."""


class FinetuneStatus(Model):
    """What happened to a Finetune."""

    observed_generation: int = Field(default=-1, ge=-1, le=LARGEST_COUNT)
    """Generation of the spec this status was decided from; -1 = nobody has looked yet."""
    phase: Phase | None = None
    """One word for tables, derived from the conditions."""
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """The truth, by type."""
    stages: list[StageStatus] = Field(
        default_factory=list,
        max_length=4,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """Prepare, then train."""
    progress: Progress | None = None
    """How far the train stage is."""
    metrics: Metrics | None = None
    """The newest numbers."""
    history: list[HistoryRow] = Field(
        default_factory=list, max_length=STATUS_HISTORY_ROWS, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """The loss curve, thinned; evaluation rows and the newest go last."""
    best: BestStatus | None = None
    """The lowest dev loss so far."""
    data: DataStatus | None = None
    """What `prepare` found."""
    effective_hyperparameters: EffectiveHyperparameters | None = None
    """The values in force."""
    plan: PlanStatus | None = None
    """How the train stage goes about its work; before it has begun, how it will, by what `prepare` knows of its GPU."""
    estimate: TrainingEstimate | None = None
    """How long training will take, where `prepare` knows the GPU by its name."""
    resolved: Resolved | None = None
    """What names in the spec turned out to mean."""
    checkpoint: CheckpointStatus | None = None
    """The newest whole checkpoint."""
    evaluation: EvaluationStatus | None = None
    """Base against tuned."""
    artifact: ArtifactStatus | None = None
    """What was published."""
    cost: CostStatus | None = None
    """What the run costs."""
    attempts: Count = 0
    """Train attempts that were started."""
    retries: Count = 0
    """Attempts that followed an infrastructure failure, in either stage; `spec.retryLimit` bounds them."""
    restarts: Count = 0
    """Attempts that followed a preemption; they count against nothing."""
    restarts_in_a_row: Count = 0
    """Those since the newest checkpoint, or the last retry: the fifth in a row counts as an infrastructure failure."""
    memory_rung: Count = 0
    """Rung of the memory ladder: each attempt that had no memory left is followed by one with smaller micro-batches."""
    active_seconds: Count = 0
    """How long the train pods of all ended attempts have run; `spec.activeDeadlineSeconds` bounds it."""
    retry_at: Instant | None = None
    """When the next attempt starts, while the run waits for it."""
    failure: Failure | None = None
    """Why the run, or its newest attempt, failed."""
