"""The status of a Finetune: everything that happened, in at most 16 KiB.

Each write is one server-side apply of the whole status. What cannot be derived from the children (attempts, restarts,
results of pods that may be gone) is read back from here.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from finetune_api.base import Model
from finetune_api.fields import LARGEST_COUNT, Count, Instant, Line, NotNegative
from finetune_api.metrics import METRICS, Metric
from finetune_api.money import CostStatus
from finetune_api.names import (
    STATUS_HISTORY_ROWS,
    STATUS_WARNING_LENGTH,
    ConditionType,
    FailureClass,
    Phase,
    Stage,
    StageState,
)

Text = Annotated[str, Field(max_length=1024)]
Measured = Annotated[float, AfterValidator(lambda value: float(f"{value:.6g}"))]
"""A measured number, to 6 significant digits: more would be noise in a table."""
Uri = Annotated[str, Field(max_length=1024, pattern=r"^[ -~]*$")]
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


class Progress(Model):
    """How far the train stage is."""

    percent: int = Field(default=0, ge=0, le=100)
    """Share of the optimizer steps done."""
    step: Count = 0
    """Optimizer steps done."""
    total_steps: Count = 0
    """Optimizer steps in all."""
    epoch: NotNegative = 0
    """Passes over the train rows, 4 decimals."""
    eta_seconds: Count | None = None
    """Estimated seconds until training ends."""
    tokens_per_second: NotNegative | None = None
    """Tokens trained per second; padding does not count."""
    updated_at: Instant | None = None
    """When the trainer said so."""


class Metrics(Model):
    """The newest numbers of the training loop."""

    training_loss: Measured | None = None
    """Mean loss over the supervised tokens since the last log line."""
    validation_loss: Measured | None = None
    """Loss over the dev rows."""
    learning_rate: Measured | None = None
    """Learning rate of the newest step."""
    grad_norm: Measured | None = None
    """Norm of the gradients before clipping."""
    gpu_utilization: int | None = Field(default=None, ge=0, le=100)
    """Percent of the last 10 minutes in which the first pod's GPUs computed; absent where no driver tells."""


class HistoryRow(Model):
    """One point of the loss curve."""

    step: Count
    """Optimizer step."""
    epoch: NotNegative
    """Passes over the train rows, 4 decimals."""
    training_loss: Measured | None = None
    """Mean loss since the last row."""
    validation_loss: Measured | None = None
    """Loss over the dev rows."""


class BestStatus(Model):
    """The lowest dev loss so far."""

    step: Count
    """Optimizer step after which it was measured."""
    validation_loss: Measured
    """Loss over the dev rows."""


class CheckpointStatus(Model):
    """What a further attempt goes on from."""

    step: Count
    """Optimizer steps done."""
    uri: Uri
    """Folder of the checkpoint."""
    saved_at: Instant
    """When it was whole."""


class RowCounts(Model):
    """Rows by part of the split."""

    train: Count = 0
    """Rows that are trained on."""
    dev: Count = 0
    """Rows evaluated while training."""
    test: Count = 0
    """Rows evaluated at the end."""
    unused: Count = 0
    """Rows in no part, since the percentages leave them out."""


class DroppedCounts(Model):
    """Rows that were read and left out, by why."""

    empty: Count = 0
    """Rows with an empty completion."""
    overlong: Count = 0
    """Rows longer than `maxSeqLength`, or with nothing left to learn once cut."""
    duplicate: Count = 0
    """Train rows that repeat a dev or test row."""


class DataStatus(Model):
    """What `prepare` found; every row read is in exactly one of `rows` and `dropped`."""

    rows: RowCounts = RowCounts()
    """Rows by part of the split."""
    dropped: DroppedCounts = DroppedCounts()
    """Rows left out, by why."""
    truncated: Count = 0
    """Rows whose prompt was shortened."""
    cut: Count = 0
    """Texts that were cut into windows."""
    sequences: Count = 0
    """Train rows as they are trained, windows of a text and separate answers of a chat counted one by one."""
    tokens: Count = 0
    """Tokens of the train rows."""
    supervised_tokens: Count = 0
    """Tokens of the train rows that are learned."""
    max_length: Count = 0
    """Tokens of the longest train row."""
    report_uri: Uri | None = None
    """The data report."""
    warnings: list[Annotated[Line, Field(max_length=STATUS_WARNING_LENGTH)]] = Field(default_factory=list, max_length=8)
    """What a user should know and need not mend."""


class EarlyStoppingStatus(Model):
    """When training stops early."""

    patience: Count
    """Evaluations in a row without a better dev loss."""
    min_delta: float
    """What a better dev loss has to be lower by."""


class EffectiveHyperparameters(Model):
    """The values in force after defaults and `auto`."""

    epochs: NotNegative | None = None
    max_steps: Count | None = None
    total_steps: Count | None = None
    learning_rate: float | None = None
    scheduler: Annotated[Line, Field(max_length=64)] | None = None
    warmup_steps: Count | None = None
    train_batch_size: Count | None = None
    eval_batch_size: Count | None = None
    gradient_accumulation_steps: Count | None = None
    max_seq_length: Count | None = None
    overlong: Annotated[Line, Field(max_length=64)] | None = None
    packing: bool | None = None
    train_on_prompt: bool | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    optimizer: Annotated[Line, Field(max_length=64)] | None = None
    eval_steps: Count | None = None
    save_steps: Count | None = None
    save_total_limit: Count | None = None
    early_stopping: EarlyStoppingStatus | None = None
    logging_steps: Count | None = None
    gradient_checkpointing: Annotated[Line, Field(max_length=64)] | None = None
    seed: Count | None = None
    devices: Count | None = None
    """Devices that share the rows of a step: the effective batch is batch size x accumulation x devices."""


class PlanStatus(Model):
    """How the train stage goes about its work, as memory and device allow: it changes time and memory, not the loss."""

    precision: Annotated[Line, Field(max_length=32)]
    """Precision of the matrix products: `float32` or `bfloat16`."""
    attention: Annotated[Line, Field(max_length=32)]
    """`packed`: rows end to end, each attends to itself alone; `padded`: one below the other."""
    micro_batch_tokens: int = Field(ge=1, le=LARGEST_COUNT)
    """Most tokens of a micro-batch, padding included; a step has as many micro-batches as its rows need."""
    activation_checkpointing: bool
    """Whether activations are computed again instead of kept."""
    compiled: bool = False
    """Whether layers are compiled: on a GPU, where training takes so long that it saves more time than it costs."""
    memory_rung: Count = 0
    """Rung of the memory ladder that this plan was made on."""
    estimated_bytes: Count | None = None
    """Estimated peak memory of training; absent where the model could not be estimated."""
    available_bytes: Count | None = None
    """Memory that training may take."""


class TrainingEstimate(Model):
    """How long training will take, as `prepare` reckons."""

    gpu: Annotated[Line, Field(max_length=253)]
    """The GPU it is reckoned for."""
    gpu_seconds: Count
    """Seconds of one GPU; several share them."""


class Resolved(Model):
    """What names in the spec turned out to mean; kept for every further attempt."""

    model_uri: Uri | None = None
    """The model that was taken, also where `finetuneRef` named it."""
    model_revision: Annotated[Line, Field(max_length=200)] | None = None
    """Commit of an `hf://` model, else a digest over its files."""
    dataset_revisions: dict[str, Annotated[Line, Field(max_length=80)]] = Field(default_factory=dict, max_length=16)
    """By dataset name: the commit of an `hf://` dataset, else the digest of its bytes."""
    trainer_image: Annotated[Line, Field(max_length=512)] | None = None
    """Image of the pods."""
    parameters: Count | None = None
    """Parameters of the model."""
    trainable_parameters: Count | None = None
    """Parameters that are trained."""


class Comparison(Model):
    """One metric before and after."""

    base: Measured | None = None
    """The weights before step 1."""
    tuned: Measured | None = None
    """The weights that are published; with `output.artifact` both, the adapter's."""
    merged: Measured | None = None
    """With `output.artifact` both: the merged model. Merging into a base that was quantised changes what it says."""


class EvaluationStatus(Model):
    """Base against tuned, on the same rows."""

    rows: Count | None = None
    """Rows that perplexity was measured on."""
    generated_rows: Count | None = None
    """Rows that were generated, which every other metric was measured on."""
    perplexity: Comparison | None = None
    """exp(negative log-likelihood per supervised token); lower is better."""
    exact_match: Comparison | None = None
    """Share of greedy answers equal to the reference."""
    accuracy: Comparison | None = None
    """Share of answers that are the reference's label."""
    macro_precision: Comparison | None = None
    """Mean over the labels: share of the answers with the label that are right."""
    macro_recall: Comparison | None = None
    """Mean over the labels: share of the references with the label that were answered."""
    macro_f1: Comparison | None = None
    """Mean over the labels of the harmonic mean of precision and recall."""
    rouge_l: Comparison | None = None
    """Mean ROUGE-L F measure of answer and reference, over lower-case words."""
    samples_uri: Uri | None = None
    """Prompts, references and both models' answers."""

    def measured(self) -> dict[Metric, Comparison]:
        """What was measured, in the order in which it is shown."""
        fields = {field.alias: name for name, field in type(self).model_fields.items()}
        found = {metric: getattr(self, fields[metric]) for metric in METRICS}
        return {metric: value for metric, value in found.items() if value is not None}


class ArtifactStatus(Model):
    """What was published."""

    uri: Uri
    """Folder of the artifact."""
    manifest_uri: Uri
    """Manifest with sizes and SHA-256; readers trust only this."""
    format: Annotated[Line, Field(max_length=32)]
    """`adapter`, `merged`, `both` or `model`."""
    bytes: Count
    """Size of all files."""
    sha256: Annotated[Line, Field(max_length=64)]
    """SHA-256 of the manifest."""
    files: Count
    """Number of files."""


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
