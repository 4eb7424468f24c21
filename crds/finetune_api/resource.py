"""The Finetune: what a user may ask for.

Bounds, defaults and descriptions here become the CRD, the chart's copy and the reference page; nothing repeats them.
What pydantic checks is what the API server has admitted already. What a user must hear at `kubectl apply` is a bound or
a CEL rule (`rules(cel(...))`): a Python validator never reaches the server.
"""

from datetime import datetime
from typing import Any

from pydantic import Field

from finetune_api.base import Model, cel, rules
from finetune_api.evaluation import Evaluation, Generation
from finetune_api.fields import Template
from finetune_api.money import Budget
from finetune_api.output import Output, Storage, Tracking
from finetune_api.placement import Guards, Queue, Trainer
from finetune_api.sources import BaseModelSource, Dataset, Split
from finetune_api.status import FinetuneStatus
from finetune_api.training import Hyperparameters, Method


class TrainingSpec(Model):
    """What the trainer must know: the part of the spec that is handed on to it, whole."""

    description: str = Field(default="", max_length=4096)
    """Free text, copied to model card and lock file."""
    model: BaseModelSource = Field(
        json_schema_extra=rules(
            cel("has(self.uri) != has(self.finetuneRef)", "model needs exactly 1 of uri and finetuneRef"),
            cel(
                "!has(self.revision) || (has(self.uri) && self.uri.startsWith('hf://'))",
                "model.revision is only allowed with an hf:// uri",
            ),
        )
    )
    """The base model."""
    datasets: list[Dataset] = Field(
        min_length=1,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """The rows, concatenated and never joined: 1 to 16 datasets."""
    split: Split = Split()
    """How `train` datasets are divided."""
    prompt_template: Template | None = None
    """Prompt with `<<column>>` references."""
    completion_template: Template | None = None
    """Completion with `<<column>>` references; alone it means an empty prompt."""
    method: Method = Method()
    """How the model is trained."""
    hyperparameters: Hyperparameters = Hyperparameters()
    """The numbers."""
    evaluation: Evaluation = Evaluation()
    """What is measured."""
    generation: Generation = Generation()
    """How samples are generated."""
    output: Output
    """Where the artifact goes."""
    tracking: Tracking = Tracking()
    """Where the curve goes beside the log."""


NEEDS_DEV_ROWS = "self.split.devPercentage > 0.0 || self.datasets.exists(d, d.role == 'dev')"


MUTABLE_FIELDS = frozenset(
    {
        "activeDeadlineSeconds",
        "budget",
        "cancel",
        "guards",
        "pendingDeadlineSeconds",
        "queue.priorityClassName",
        "retryLimit",
        "suspend",
        "ttlSecondsAfterFinished",
    }
)
"""Fields of `spec`, and fields of its objects, that may change; the CRD generator forbids it for every other."""


CREATION_RULES = (
    cel(
        "(self.trainer.nodes == 1 && self.trainer.gpusPerNode <= 1) || self.method.type == 'lora' || "
        "self.hyperparameters.optimizer in ['adamw', 'adam', 'sgd']",
        "hyperparameters.optimizer must be adamw, adam or sgd with method.type full and trainer.nodes or "
        "trainer.gpusPerNode above 1: no process holds a whole tensor then",
    ),
    cel(
        f"self.hyperparameters.evalSteps == 0 || {NEEDS_DEV_ROWS}",
        "hyperparameters.evalSteps above 0 needs dev rows: set split.devPercentage or give a dataset role dev",
    ),
    cel(
        f"!has(self.hyperparameters.earlyStopping) || {NEEDS_DEV_ROWS}",
        "hyperparameters.earlyStopping needs dev rows: set split.devPercentage or give a dataset role dev",
    ),
    cel(
        f"self.hyperparameters.scheduler != 'reduce_lr_on_plateau' || {NEEDS_DEV_ROWS}",
        "hyperparameters.scheduler reduce_lr_on_plateau needs dev rows: "
        "set split.devPercentage or give a dataset role dev",
    ),
    cel(
        "!has(self.output.artifact) || self.method.type == 'lora'",
        "output.artifact is only allowed with method.type lora: a full run publishes the whole model",
    ),
    cel(
        "!has(self.evaluation.gate) || self.split.devPercentage > 0.0 || self.datasets.exists(d, d.role != 'train')",
        "evaluation.gate needs rows to measure: set split.devPercentage or give a dataset role test or dev",
    ),
    cel("self.datasets.exists(d, d.role == 'train')", "datasets needs at least 1 dataset with role train"),
    cel(
        "!(has(self.promptTemplate) || has(self.completionTemplate)) || "
        "!self.datasets.exists(d, d.type in ['chat', 'infix'])",
        "promptTemplate and completionTemplate exclude datasets[].type chat and infix: set them per dataset",
    ),
)
"""Rules over several fields of `spec`; they run at creation only: one added later blocks no stored object."""


class FinetuneSpec(TrainingSpec):
    """What a user asks for. What trains is fixed once created; what steers the run may change."""

    storage: Storage = Storage()
    """How S3 is reached."""
    trainer: Trainer = Trainer()
    """The train pods."""
    queue: Queue = Queue()
    """A queue in front of the pods. Time in it counts in no deadline."""
    retry_limit: int = Field(default=3, ge=0, le=100)
    """How often a run is tried again after infrastructure failures; preemption does not count."""
    suspend: bool = False
    """Stop training, and go on when it is false again. Created suspended, the run is prepared and not trained."""
    cancel: bool = Field(
        default=False, json_schema_extra=rules(cel("self || !oldSelf", "cancel is final: it cannot be taken back"))
    )
    """Stop for good and publish nothing; what lies in S3 stays. Changes nothing of a run that is over."""
    managed_by: str = Field(
        default="", max_length=253, json_schema_extra={"pattern": r"^([a-z0-9.-]+/[A-Za-z0-9._-]+)?$"}
    )
    """Another controller that reconciles this Finetune; this operator then never touches it. Empty = this one."""
    pending_deadline_seconds: int = Field(default=3600, ge=1, le=31_536_000)
    """How long an attempt may wait for its pod to start (no node, image, volume or quota) before the run is held."""
    active_deadline_seconds: int = Field(default=86400, ge=1, le=315_360_000)
    """How long train pods may run, all attempts together, before the run is held. Waiting does not count."""
    guards: Guards = Guards()
    """What is watched while the run trains."""
    budget: Budget | None = None
    """What training may cost before the run is held. Without a price for its GPU nothing is bounded, with a warning."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=315_360_000)
    """Delete the Finetune so long after it ended. No default: never. Not for GitOps, which would make it again."""


class Metadata(Model):
    """The part of ObjectMeta that decisions are made from."""

    name: str
    namespace: str
    uid: str
    generation: int = 1
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: datetime | None = None
    finalizers: list[str] = Field(default_factory=list)
    annotations: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)


class Finetune(Model):
    """A fine-tuning run: data, base model and method in; a tested model artifact in S3 out."""

    metadata: Metadata
    spec: FinetuneSpec
    status: FinetuneStatus = Field(default_factory=lambda: FinetuneStatus())


def parse_finetune(body: dict[str, Any]) -> Finetune:
    """A Finetune from the object that the API server returns."""
    return Finetune.model_validate(body)
