"""How a run trains: the method and the hyperparameters."""

from enum import StrEnum

from pydantic import ConfigDict, Field

from finetune_api.base import Model, cel, rules
from finetune_api.fields import Name


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
