"""What a run starts from: the base model, the datasets and their split."""

from enum import StrEnum

from pydantic import ConfigDict, Field

from finetune_api.base import Model, cel, rules
from finetune_api.fields import KEYS_HAVE_A_SIZE, NAME_PATTERN, NO_DOT_DOT, ColumnName, SecretRef, Template


class FinetuneRef(Model):
    """Another Finetune of the same namespace."""

    name: str = Field(min_length=1, max_length=40, json_schema_extra={"pattern": NAME_PATTERN})
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
