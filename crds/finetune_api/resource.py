"""The Finetune: what a user may ask for.

Bounds, defaults and descriptions here become the CRD, the chart's copy and the reference page; nothing repeats them.
What pydantic checks is what the API server has admitted already. What a user must hear at `kubectl apply` is a bound or
a CEL rule (`rules(cel(...))`): a Python validator never reaches the server.
"""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from finetune_api.base import Model, cel, rules
from finetune_api.metrics import LOWER_IS_BETTER, READ_ANSWERS, READ_LABELS, Metric
from finetune_api.status import FinetuneStatus

NO_DOT_DOT = cel("!self.split('/').exists(part, part == '..')", "a URI may not contain '..' as a path part")

Quantity = Annotated[
    str,
    BeforeValidator(str),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$",
            "maxLength": 32,
        }
    ),
]
"""A Kubernetes quantity such as `4`, `500m` or `32Gi`."""

CPU_PATTERN = r"^([0-9]+(\.[0-9]{1,3})?|[0-9]+m)$"

Cpu = Annotated[
    str,
    BeforeValidator(str),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": CPU_PATTERN,
            "maxLength": 16,
            **rules(
                cel("type(self) == int ? self >= 1 : true", "trainer.cpu must be at least 1, or a part such as 500m")
            ),
        }
    ),
]
"""CPUs: `4`, `1.5` or `1500m`."""

CLASS_NAME_PATTERN = r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$"

KEYS_HAVE_A_SIZE = cel("self.all(key, key.size() > 0 && key.size() <= 253)", "a key has 1 to 253 characters")

Name = Annotated[str, Field(min_length=1, max_length=253)]
Template = Annotated[str, Field(min_length=1, max_length=16384)]
ColumnName = Annotated[str, Field(min_length=1, max_length=253)]


class SecretRef(Model):
    """A Secret in the namespace of the Finetune. The operator never reads it; the pod that needs it mounts it."""

    name: Name
    """Name of the Secret."""


class FinetuneRef(Model):
    """Another Finetune of the same namespace."""

    name: Annotated[str, Field(min_length=1, max_length=40)]
    """Name of a Finetune; the run waits until it has succeeded and starts from its artifact."""


class BaseModelSource(Model):
    """The one model to start from."""

    uri: str | None = Field(
        default=None,
        max_length=1024,
        json_schema_extra=rules(
            NO_DOT_DOT,
            pattern=r"^(hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+|s3://[a-z0-9.-]+/[!-~]+|pvc://[a-z0-9.-]+/[!-~]+)$",
        ),
    )
    """Where the model is: `hf://ORG/NAME`, `s3://BUCKET/PREFIX` or `pvc://CLAIM/PATH`."""
    revision: str | None = Field(default=None, min_length=1, max_length=200)
    """Branch, tag or commit of an `hf://` model (default `main`); resolved once and kept for every attempt."""
    finetune_ref: FinetuneRef | None = None
    """Start from the artifact of another Finetune instead: an adapter is trained further, a full model is a base."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with key `HF_TOKEN`, for gated `hf://` models and datasets."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; refused unless the operator allows it (`settings.allowRemoteCode` of
    its chart)."""


class Format(StrEnum):
    """File formats of datasets."""

    AUTO = "auto"
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"
    ARROW = "arrow"
    TEXT = "text"


class RowType(StrEnum):
    """What a row is made of."""

    AUTO = "auto"
    PROMPT_COMPLETION = "promptCompletion"
    INSTRUCTION = "instruction"
    CHAT = "chat"
    TEXT = "text"
    INFIX = "infix"


class Role(StrEnum):
    """What the rows of a dataset are for."""

    TRAIN = "train"
    DEV = "dev"
    TEST = "test"


class Dataset(Model):
    """Rows of one kind, from one file or several."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!(self.type in ['chat', 'infix']) || !(has(self.promptTemplate) || has(self.completionTemplate))",
                "datasets[].type chat and infix exclude promptTemplate and completionTemplate",
            ),
            cel(
                "!has(self.revision) || self.uri.startsWith('hf://')",
                "datasets[].revision is only allowed with an hf:// uri",
            ),
        )
    )
    name: str = Field(min_length=1, max_length=63, json_schema_extra={"pattern": r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"})
    """Name of the dataset, unique in this Finetune; the split depends on it."""
    uri: str = Field(
        max_length=1024,
        json_schema_extra=rules(
            NO_DOT_DOT,
            pattern=(
                r"^(s3://[a-z0-9.-]+/[!-~]+|configmap://[a-z0-9.-]+/[A-Za-z0-9._-]+|pvc://[a-z0-9.-]+/[!-~]+"
                r"|hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(/[!-~]+)?|https://[A-Za-z0-9.-]+(:[0-9]{1,5})?/[!-~]+)$"
            ),
        ),
    )
    """Where the rows are: `s3://BUCKET/KEY`, `pvc://CLAIM/PATH`, `hf://ORG/NAME` or `hf://ORG/NAME/PATH` (each a file,
    a folder, or a glob with `*`, `?` and `**`), `configmap://NAME/KEY` or `https://HOST/PATH` (a file)."""
    revision: str | None = Field(default=None, min_length=1, max_length=200)
    """Branch, tag or commit of an `hf://` dataset (default `main`); resolved once and kept for every attempt."""
    format: Format = Format.AUTO
    """Format of the files; `auto` goes by the suffix, then by the content. All but parquet and arrow may be gzipped."""
    type: RowType = RowType.AUTO
    """What a row is made of, where no template applies; `auto` finds it from the columns, but never `infix`."""
    role: Role = Role.TRAIN
    """`train` is divided by `spec.split`; `dev` and `test` rows are evaluated only."""
    columns: dict[str, ColumnName] = Field(
        default_factory=dict, max_length=64, json_schema_extra=rules(KEYS_HAVE_A_SIZE)
    )
    """Wanted column name to column name in the file; afterwards only the wanted name exists."""
    max_rows: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Read no more than so many rows, from the start of the file."""
    prompt_template: Template | None = None
    """Template of this dataset alone; wins over `spec.promptTemplate`."""
    completion_template: Template | None = None
    """Template of this dataset alone; wins over `spec.completionTemplate`."""


class Split(Model):
    """How the rows of each `train` dataset are divided, by a hash of seed, dataset name and row number."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.trainPercentage + self.devPercentage <= 100.000001",
                "split.trainPercentage + split.devPercentage must be at most 100",
            )
        )
    )
    train_percentage: float = Field(
        default=100,
        ge=0,
        le=100,
        json_schema_extra=rules(cel("self > 0.0", "split.trainPercentage must be greater than 0 and at most 100")),
    )
    """Share of the rows to train on: greater than 0, at most 100."""
    dev_percentage: float = Field(
        default=0,
        ge=0,
        le=100,
        json_schema_extra=rules(cel("self < 100.0", "split.devPercentage must be at least 0 and less than 100")),
    )
    """Share of the rows to evaluate on while training; with `trainPercentage` at most 100."""
    seed: int = Field(default=42, ge=0, le=4294967295)
    """Another seed makes another split."""


class MethodType(StrEnum):
    """What is trained."""

    LORA = "lora"
    FULL = "full"


class Quantization(StrEnum):
    """How the frozen base is stored while its adapter is trained."""

    NONE = "none"
    INT8 = "int8"
    NF4 = "nf4"


class Lora(Model):
    """LoRA adapters. Source: Hu et al. 2021, arXiv 2106.09685."""

    rank: int = Field(default=16, ge=1, le=1024)
    """Rank of the update of each adapted matrix."""
    alpha: float = Field(
        default=32, ge=0, le=65536, json_schema_extra=rules(cel("self > 0.0", "lora.alpha must be greater than 0"))
    )
    """The update is scaled by alpha / rank."""
    dropout: float = Field(
        default=0, ge=0, le=1, json_schema_extra=rules(cel("self < 1.0", "lora.dropout must be less than 1"))
    )
    """Dropout on the adapter's input: at least 0, less than 1."""
    target_modules: list[Name] = Field(
        default=["all-linear"], min_length=1, max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """Last parts of module paths, or `all-linear` (every linear layer and fused expert weight but output head and
    router), or one `regex:PATTERN`."""
    dora: bool = False
    """Learn the length of each adapted matrix's columns apart from their direction. Source: arXiv 2402.09353."""
    rslora: bool = False
    """Scale the update by alpha / √rank instead, which keeps high ranks learning. Source: arXiv 2312.03732."""
    modules_to_save: list[Name] = Field(
        default_factory=list, max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """Last parts of the paths of further modules, trained whole and stored with the adapter: embedding, head, norms."""


class Method(Model):
    """How the model is trained."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.quantization == 'none' || self.type == 'lora'",
                "method.quantization int8 and nf4 need method.type lora: a quantised base is frozen",
            ),
            cel("!has(self.lora) || self.type == 'lora'", "method.lora is only allowed with method.type lora"),
        )
    )
    type: MethodType = MethodType.LORA
    """`lora` trains adapters on a frozen base; `full` trains every weight."""
    quantization: Quantization = Quantization.NONE
    """Storage of the frozen base: `none`, `int8` or `nf4`; needs `lora`."""
    lora: Lora | None = None
    """Settings of the adapters; defaults apply when it is absent."""


class Scheduler(StrEnum):
    """Course of the learning rate; transformers' functions of the same names."""

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    INVERSE_SQRT = "inverse_sqrt"
    REDUCE_LR_ON_PLATEAU = "reduce_lr_on_plateau"


class Optimizer(StrEnum):
    """Optimizers."""

    ADAMW = "adamw"
    ADAM = "adam"
    ADAMW8BIT = "adamw8bit"
    PAGED_ADAMW8BIT = "pagedAdamw8bit"
    ADAFACTOR = "adafactor"
    SGD = "sgd"


class Overlong(StrEnum):
    """What happens to a row longer than `maxSeqLength`."""

    ERROR = "error"
    DROP = "drop"
    TRUNCATE = "truncate"
    SPLIT = "split"


class GradientCheckpointing(StrEnum):
    """When activations are computed again in the backward pass instead of kept."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class EarlyStopping(Model):
    """Training stops where the dev loss does not fall any more, and the weights with the lowest are published."""

    patience: int = Field(default=3, ge=1, le=1_000_000)
    """Evaluations in a row that do not lower the best dev loss by more than `minDelta`."""
    min_delta: float = Field(default=0, ge=0, le=1_000_000)
    """What counts as lower."""


class Hyperparameters(Model):
    """Every one takes effect; the values in force are echoed in `status.effectiveHyperparameters`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!(has(self.warmupRatio) && has(self.warmupSteps))",
                "hyperparameters.warmupRatio and warmupSteps exclude each other: set at most 1 of the 2",
            ),
            cel(
                "!(has(self.warmupRatio) || has(self.warmupSteps)) || "
                "!(self.scheduler in ['constant', 'reduce_lr_on_plateau'])",
                "hyperparameters.warmupRatio and warmupSteps need a scheduler with warmup, "
                "not constant or reduce_lr_on_plateau",
            ),
        )
    )
    epochs: float = Field(
        default=3, ge=0, le=1000, json_schema_extra=rules(cel("self > 0.0", "hyperparameters.epochs must be above 0"))
    )
    """Passes over the train rows; fractions are allowed. Greater than 0, at most 1000."""
    max_steps: int = Field(default=0, ge=0, le=1_000_000_000)
    """Optimizer steps, whatever `epochs` says; 0 = off."""
    learning_rate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        json_schema_extra=rules(cel("self > 0.0", "hyperparameters.learningRate must be greater than 0")),
    )
    """Peak learning rate: greater than 0, at most 1. Default 2e-4 for `lora`, 1e-5 for `full`."""
    scheduler: Scheduler = Scheduler.LINEAR
    """Course of the learning rate."""
    warmup_ratio: float | None = Field(
        default=None,
        ge=0,
        le=1,
        json_schema_extra=rules(cel("self < 1.0", "hyperparameters.warmupRatio must be less than 1")),
    )
    """Share of the steps over which the rate rises from 0: at least 0, less than 1."""
    warmup_steps: int | None = Field(default=None, ge=0, le=1_000_000_000)
    """Steps over which the rate rises from 0; excludes `warmupRatio`."""
    train_batch_size: int = Field(default=8, ge=1, le=4096)
    """Rows per device and micro-batch."""
    eval_batch_size: int = Field(default=8, ge=1, le=4096)
    """Rows per evaluation batch; changes memory and time, never the result."""
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=65536)
    """Micro-batches per optimizer step."""
    max_seq_length: int | None = Field(default=None, ge=2, le=1_048_576)
    """Longest row in tokens. Default 2048, or the model's limit if that is lower."""
    overlong: Overlong = Overlong.ERROR
    """What happens to a longer row: `error`, `drop`, `truncate` (shortens the prompt from its start; drops a chat), or
    `split` (cuts a text without prompt into windows)."""
    packing: bool = True
    """Rearrange the rows of a step so that nothing is padded; same steps, same loss."""
    train_on_prompt: bool = False
    """Learn the prompt too, not only the completion."""
    weight_decay: float = Field(default=0, ge=0, le=1)
    """Decay of trained matrices; biases and norms have none."""
    max_grad_norm: float = Field(default=1, ge=0, le=1_000_000)
    """Largest norm of all gradients together; 0 = off."""
    optimizer: Optimizer = Optimizer.ADAMW
    """Optimizer; `adam` adds the decay to the gradient, `sgd` has no momentum, `adamw8bit` keeps its state in 8 bits,
    `pagedAdamw8bit` moves that to main memory where a GPU has no room."""
    eval_steps: int = Field(default=0, ge=0, le=1_000_000_000)
    """Steps between evaluations on the dev rows; 0 = each epoch."""
    save_steps: int = Field(default=0, ge=0, le=1_000_000_000)
    """Steps between checkpoints; 0 = each epoch. There is one at the end and at each new lowest dev loss besides."""
    save_total_limit: int = Field(default=2, ge=1, le=1000)
    """Newest checkpoints that are kept, beside the one with the lowest dev loss."""
    early_stopping: EarlyStopping | None = None
    """When to stop early and publish the best weights; off when it is absent. Needs dev rows."""
    logging_steps: int = Field(default=10, ge=1, le=1_000_000_000)
    """Steps between history rows and log lines."""
    gradient_checkpointing: GradientCheckpointing = GradientCheckpointing.AUTO
    """Compute activations again instead of keeping them: less memory, more time, same loss. `auto` = where the memory
    estimate asks for it."""
    seed: int = Field(default=42, ge=0, le=4294967295)
    """Adapter start, row order and dropout."""


class Gate(Model):
    """What the tuned model must reach to be published."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "has(self.minimum) || has(self.maximum) || self.improves",
                "evaluation.gate needs at least 1 of minimum, maximum and improves",
            ),
            cel(
                f"!has(self.minimum) || !(self.metric in {LOWER_IS_BETTER})",
                f"evaluation.gate.minimum is for a metric of which more is better: for {', '.join(LOWER_IS_BETTER)} "
                "set evaluation.gate.maximum",
            ),
            cel(
                f"!has(self.maximum) || self.metric in {LOWER_IS_BETTER}",
                f"evaluation.gate.maximum is for {', '.join(LOWER_IS_BETTER)}, of which less is better: "
                "set evaluation.gate.minimum",
            ),
        )
    )
    metric: Metric
    """The metric that decides; one of `evaluation.metrics`."""
    minimum: float | None = Field(default=None, ge=0, le=1)
    """Least value of the tuned model, for every metric but perplexity."""
    maximum: float | None = Field(default=None, ge=1, le=1_000_000_000)
    """Largest perplexity of the tuned model."""
    improves: bool = False
    """The tuned model must be better than the base; as good is not enough."""


Label = Annotated[str, Field(min_length=1, max_length=256, json_schema_extra={"pattern": r"^\S(.*\S)?$"})]


class Evaluation(Model):
    """Base against tuned on the same rows: test rows where there are some, else dev rows."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.gate) || self.gate.metric in self.metrics",
                "evaluation.gate.metric must be one of evaluation.metrics",
            ),
            cel(
                f"!has(self.labels) || self.metrics.exists(metric, metric in {READ_LABELS})",
                f"evaluation.labels needs a metric over labels in evaluation.metrics: {', '.join(READ_LABELS)}",
            ),
            cel(
                f"!has(self.answerPattern) || self.metrics.exists(metric, metric in {READ_ANSWERS})",
                f"evaluation.answerPattern needs a metric that reads answers in evaluation.metrics: "
                f"{', '.join(READ_ANSWERS)}",
            ),
        )
    )
    metrics: list[Metric] = Field(
        default=[Metric.PERPLEXITY], max_length=8, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """What is measured; an empty list measures nothing."""
    rows: int = Field(default=64, ge=0, le=1_000_000)
    """Rows that are generated, for samples and every metric but perplexity, from the first on; 0 = all."""
    answer_pattern: str | None = Field(default=None, min_length=1, max_length=1024)
    """Regular expression with one group: the last match's group is the answer; commas between digits are removed."""
    labels: list[Label] | None = Field(
        default=None, min_length=2, max_length=1024, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """The answers that there are, for the metrics over labels; a reference that is none of them is refused by prepare.
    Default: the labels in the references."""
    gate: Gate | None = None
    """Publish only a model that is good enough; else the run fails with class GateFailed."""


class Generation(Model):
    """How samples are generated: greedy, sampled, or by contrastive search. What is measured is always greedy."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.doSample || (self.temperature == 1.0 && self.topP == 1.0)",
                "generation.temperature and topP need generation.doSample true",
            ),
            cel(
                "self.topK == 0 || self.doSample || self.penaltyAlpha > 0.0",
                "generation.topK above 0 needs generation.doSample true or penaltyAlpha above 0",
            ),
            cel(
                "self.penaltyAlpha == 0.0 || self.topK >= 2",
                "generation.penaltyAlpha above 0 needs generation.topK of at least 2: it chooses among so many tokens",
            ),
            cel(
                "self.penaltyAlpha == 0.0 || !self.doSample",
                "generation.penaltyAlpha above 0 (contrastive search) excludes generation.doSample",
            ),
        )
    )
    max_new_tokens: int = Field(default=128, ge=1, le=1_048_576)
    """Most tokens to generate."""
    do_sample: bool = False
    """Sample instead of taking the likeliest token; `hyperparameters.seed` and `evalBatchSize` decide the samples."""
    temperature: float = Field(
        default=1,
        ge=0,
        le=100,
        json_schema_extra=rules(cel("self > 0.0", "generation.temperature must be greater than 0")),
    )
    """Divides the logits; needs `doSample`."""
    top_k: int = Field(default=0, ge=0, le=1_000_000)
    """Choose among the k likeliest tokens; 0 = off; needs `doSample` or `penaltyAlpha`."""
    top_p: float = Field(
        default=1, ge=0, le=1, json_schema_extra=rules(cel("self > 0.0", "generation.topP must be greater than 0"))
    )
    """Sample from the likeliest tokens that together have this probability; needs `doSample`."""
    penalty_alpha: float = Field(
        default=0,
        ge=0,
        le=1,
        json_schema_extra=rules(cel("self < 1.0", "generation.penaltyAlpha must be at least 0 and less than 1")),
    )
    """Above 0: contrastive search, this being the weight of the penalty on repetition; needs `topK` of at least 2. The
    artifact's `generation_config.json` then says greedy. Source: Su et al. 2022, arXiv 2202.06417."""


class ArtifactForm(StrEnum):
    """What is published of a LoRA run."""

    ADAPTER = "adapter"
    MERGED = "merged"
    BOTH = "both"


class Output(Model):
    """Where the artifact goes."""

    uri: str = Field(
        max_length=512,
        json_schema_extra=rules(NO_DOT_DOT, pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[!-~]*)?$"),
    )
    """`s3://BUCKET/PREFIX`; the run writes below `<uri>/<namespace>/<name>/<uid>/` and nowhere else."""
    artifact: ArtifactForm | None = None
    """`adapter` (default for `lora`), `merged` into the unquantised base, or `both`: the adapter, and in its folder
    `merged` the whole model. `full` publishes the model, always."""


class Sink(StrEnum):
    """Where the curve goes beside the log."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"
    WANDB = "wandb"


class Mlflow(Model):
    """An MLflow tracking server."""

    tracking_uri: str = Field(default="", max_length=512, json_schema_extra={"pattern": r"^(https?://[!-~]+)?$"})
    """URL of the server; empty = files below the run."""
    experiment: str = Field(default="", max_length=253)
    """Name of the experiment, made where it is not there; empty = `<namespace>/<name>`."""


class Wandb(Model):
    """Weights & Biases."""

    base_url: str = Field(default="", max_length=512, json_schema_extra={"pattern": r"^(https?://[!-~]+)?$"})
    """URL of a server of one's own; empty = the vendor's."""
    entity: str = Field(default="", max_length=128)
    """User or team; empty = the key's own."""
    project: str = Field(default="", max_length=128)
    """Project; empty = the namespace."""


class Tracking(Model):
    """Sinks for the curve beside the log and `training_log.jsonl`, which always exist. One that fails warns once."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.mlflow) || self.sinks.exists(s, s == 'mlflow')",
                "tracking.mlflow needs mlflow in tracking.sinks",
            ),
            cel(
                "!has(self.wandb) || self.sinks.exists(s, s == 'wandb')", "tracking.wandb needs wandb in tracking.sinks"
            ),
        )
    )
    sinks: list[Sink] = Field(default_factory=list, max_length=3, json_schema_extra={"x-kubernetes-list-type": "set"})
    """Any of `tensorboard`, `mlflow` and `wandb`. What goes to no server lies below the run, in
    `tracking/`, at its end."""
    mlflow: Mlflow | None = None
    """Where MLflow's server is; without it files."""
    wandb: Wandb | None = None
    """Where runs go at Weights & Biases; without a key an offline run that `wandb sync` sends later."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with any of the keys `WANDB_API_KEY`, `MLFLOW_TRACKING_TOKEN`, and `MLFLOW_TRACKING_USERNAME` with
    `MLFLOW_TRACKING_PASSWORD`."""


class Checksums(StrEnum):
    """Whether uploads carry a SHA-256 that the server checks and keeps."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Storage(Model):
    """How S3 is reached."""

    endpoint: str = Field(default="", max_length=512, json_schema_extra={"pattern": r"^(https?://[!-~]+)?$"})
    """URL of an S3-compatible server; empty = AWS."""
    region: str = Field(default="", max_length=64)
    """Region; empty = `us-east-1`."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with keys `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (and `AWS_SESSION_TOKEN`)."""
    service_account_name: str = Field(default="", max_length=253)
    """Service account of the pods, for workload identity; empty = `default`."""
    checksums: Checksums = Checksums.AUTO
    """SHA-256 of uploads: `auto` sends it unless the server refuses it, `always` fails then, `never` sends none. What
    was uploaded without one is read back and compared."""


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

    key: str | None = Field(default=None, max_length=317)
    """Taint key; empty with operator `Exists` tolerates everything."""
    operator: TolerationOperator | None = None
    """`Exists` or `Equal`."""
    value: str | None = Field(default=None, max_length=63)
    """Taint value."""
    effect: TaintEffect | None = None
    """`NoSchedule`, `PreferNoSchedule` or `NoExecute`; empty = all."""
    toleration_seconds: int | None = Field(default=None, ge=0, le=2_147_483_647)
    """How long `NoExecute` is tolerated, in seconds."""


class Trainer(Model):
    """The train pod. `prepare` runs on CPU and takes the operator's own sizes."""

    gpus_per_node: int = Field(default=1, ge=0, le=16)
    """GPUs of the pod, each with a process of its own that takes its share of every step; 0 trains on CPU."""
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
    node_selector: dict[str, Annotated[str, Field(max_length=63)]] = Field(
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


LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$"


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
    """WorkloadPriorityClass of the Jobs."""


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
        "cancel",
        "pendingDeadlineSeconds",
        "retryLimit",
        "suspend",
        "ttlSecondsAfterFinished",
    }
)
"""Fields of `spec` that may change after creation; the CRD generator forbids it for every other."""

CREATION_RULES = (
    cel(
        "self.trainer.gpusPerNode <= 1 || self.method.type == 'lora' || "
        "self.hyperparameters.optimizer in ['adamw', 'adam', 'sgd']",
        "hyperparameters.optimizer must be adamw, adam or sgd with method.type full and trainer.gpusPerNode above 1: "
        "no process holds a whole tensor then",
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
    """The train pod."""
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
    deletion_timestamp: str | None = None
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
