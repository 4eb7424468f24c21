"""What the operator is told by whoever runs it: one YAML file, rendered by the chart, read once at startup."""

from pathlib import Path
from typing import Annotated, Self

import yaml
from finetune_api.base import Model
from finetune_api.fields import CPU_PATTERN, Cpu, Quantity
from pydantic import ConfigDict, Field, ValidationError, model_validator

from finetune_operator.prices import GpuKind, Prices


class SettingsError(Exception):
    """The settings file is missing or wrong; the text says where."""


class PrepareSize(Model):
    """Requests and limits of the prepare pod, which needs no GPU."""

    model_config = ConfigDict(extra="forbid")

    cpu: Annotated[Cpu, Field(pattern=CPU_PATTERN)] = "1"
    memory: Quantity = "2Gi"
    ephemeral_storage: Quantity = "10Gi"


class Settings(Model):
    """The whole file. An unknown key is an error: a misspelt setting must not be ignored."""

    model_config = ConfigDict(extra="forbid")

    trainer_image: str
    """Image of the prepare and train pods."""
    image_pull_policy: str = "IfNotPresent"
    """Pull policy of that image."""
    image_pull_secrets: list[str] = Field(default_factory=list)
    """Names of pull Secrets; they must exist in the namespace of the Finetune."""
    report_url: str
    """Base URL of this operator's progress endpoint, as pods reach it."""
    report_ca_config_map: str = ""
    """ConfigMap with the authority of its certificate under `ca.crt`, in each namespace of Finetunes; empty = none."""
    allow_remote_code: bool = False
    """Whether `model.trustRemoteCode` is honoured: it runs code of strangers in the pods."""
    allowed_output_prefixes: list[Annotated[str, Field(pattern=r"^s3://[^/]")]] = Field(default_factory=list)
    """Where runs may write: `output.uri` must be one of these, or lie below one; empty = anywhere. `{namespace}` stands
    for the namespace of the Finetune."""
    prepare: PrepareSize = PrepareSize()
    """Size of the prepare pod."""
    gpus: list[GpuKind] = Field(default_factory=list, max_length=64)
    """Kinds of GPU, the most particular first: the first whose labels a node has is the one."""
    prices: Prices = Prices()
    """Prices of everything but GPUs, and their currency."""
    namespaces: list[str] = Field(default_factory=list)
    """Namespaces to watch; empty = all."""
    listen_port: Annotated[int, Field(ge=1, le=65535)] = 8080
    """Port of progress endpoint, metrics and probes."""
    resync_seconds: Annotated[float, Field(gt=0)] = 60
    """Every Finetune is looked at this often, also when no event came."""
    status_interval_seconds: Annotated[float, Field(ge=0)] = 10
    """Least time between two status writes that only bring progress."""
    retry_wait_seconds: Annotated[float, Field(gt=0)] = 10
    """Wait before the first retry of an infrastructure failure; each further wait is twice as long."""
    retry_wait_limit_seconds: Annotated[float, Field(gt=0)] = 300
    """Longest such wait."""
    node_loss_seconds: Annotated[float, Field(ge=0)] = 60
    """How long after its grace period a pod is removed by force that has not left its node, where that is gone or not
    ready."""
    cleanup_seconds: Annotated[int, Field(ge=1)] = 600
    """How long removing the files of a Finetune with `output.deletionPolicy: Delete` may take, and its pods longer than
    their grace period; after that it goes without."""
    lease_namespace: str = "default"
    """Namespace of the Lease that only one operator holds; the chart's is that of its release."""
    lease_name: str = "finetune-operator"
    """Name of that Lease: two operators with the same one never work at the same time."""
    log_format: str = "json"
    """`json` or `text`, for operator and trainer."""

    def report_address(self, path: str) -> str:
        """URL of one path of the progress endpoint, as pods reach it."""
        return self.report_url.rstrip("/") + path

    @model_validator(mode="after")
    def _prices_have_a_currency(self) -> Self:
        if not self.prices.currency and (self.prices.given or any(gpu.is_priced for gpu in self.gpus)):
            raise ValueError("there are prices, but prices.currency is empty")
        return self

    @model_validator(mode="after")
    def _gpus_have_names_of_their_own(self) -> Self:
        named = [gpu.name for gpu in self.gpus]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"gpus holds {', '.join(twice)} more than once")
        return self


def load_settings(path: Path) -> Settings:
    """The settings in the file. Raises SettingsError with one line for each thing wrong."""
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text()) or {})
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        lines = (": ".join([str(path), *_place(item["loc"]), item["msg"]]) for item in error.errors())
        raise SettingsError("\n".join(lines)) from error


def _place(parts: tuple[int | str, ...]) -> list[str]:
    """Where in the file; nothing for a rule over several of its settings."""
    return [".".join(map(str, parts))] if parts else []
