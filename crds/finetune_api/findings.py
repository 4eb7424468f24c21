"""What a run found, decided, measured and made, as it stands in its result and in the status."""

from typing import Annotated

from pydantic import Field

from finetune_api.base import Model
from finetune_api.fields import LARGEST_COUNT, Count, Line, Measured, NotNegative, Uri
from finetune_api.metrics import METRICS, Metric
from finetune_api.names import STATUS_WARNING_LENGTH


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
