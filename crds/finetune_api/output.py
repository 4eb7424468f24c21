"""Where a run writes: the artifact, S3, and the trackers of its curve."""

from enum import StrEnum

from pydantic import ConfigDict, Field

from finetune_api.base import Model, cel, rules
from finetune_api.fields import CLASS_NAME_PATTERN, NO_DOT_DOT, SecretRef

SERVER_PATTERN = r"^(https?://[!-~]+)?$"
"""The URL of a server, or nothing."""


class ArtifactForm(StrEnum):
    """What is published of a LoRA run."""

    ADAPTER = "adapter"
    MERGED = "merged"
    BOTH = "both"


class DeletionPolicy(StrEnum):
    """What becomes of a run's files when its Finetune is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


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
    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN
    """What happens to what the run wrote when the Finetune is deleted: `Retain` leaves all of it, `Delete` removes
    data, checkpoints and the artifact. What cannot be removed in time stays, and an Event says so."""


class Sink(StrEnum):
    """Where the curve goes beside the log."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"
    WANDB = "wandb"


class Mlflow(Model):
    """An MLflow tracking server."""

    tracking_uri: str = Field(default="", max_length=512, json_schema_extra={"pattern": SERVER_PATTERN})
    """URL of the server; empty = files below the run."""
    experiment: str = Field(default="", max_length=253)
    """Name of the experiment, made where it is not there; empty = `<namespace>/<name>`."""


class Wandb(Model):
    """Weights & Biases."""

    base_url: str = Field(default="", max_length=512, json_schema_extra={"pattern": SERVER_PATTERN})
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

    endpoint: str = Field(default="", max_length=512, json_schema_extra={"pattern": SERVER_PATTERN})
    """URL of an S3-compatible server; empty = AWS."""
    region: str = Field(default="", max_length=64)
    """Region; empty = `us-east-1`."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with keys `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (and `AWS_SESSION_TOKEN`)."""
    service_account_name: str = Field(default="", max_length=253, json_schema_extra={"pattern": CLASS_NAME_PATTERN})
    """Service account of the pods, for workload identity; empty = `default`."""
    checksums: Checksums = Checksums.AUTO
    """SHA-256 of uploads: `auto` sends it unless the server refuses it, `always` fails then, `never` sends none. What
    was uploaded without one is read back and compared."""
