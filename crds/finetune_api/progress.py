"""How far training is, as it stands in progress reports and in the status."""

from pydantic import Field

from finetune_api.base import Model
from finetune_api.fields import Count, Instant, Measured, NotNegative, Uri


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
