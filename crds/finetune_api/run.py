"""The run contract: RunSpec (operator to trainer, `run.json`), RunResult and ProgressReport (trainer to operator).

One JSON sample of each lies in `tests/data/`; an operator test writes it, a trainer test reads it.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from finetune_api.base import Model, StrictModel
from finetune_api.fields import LARGEST_COUNT, Count, Uri
from finetune_api.findings import (
    ArtifactStatus,
    DataStatus,
    EffectiveHyperparameters,
    EvaluationStatus,
    PlanStatus,
    Resolved,
    TrainingEstimate,
)
from finetune_api.names import (
    STATUS_HISTORY_ROWS,
    TERMINATION_MESSAGE_BYTES,
    Activity,
    Stage,
)
from finetune_api.output import Checksums
from finetune_api.progress import BestStatus, CheckpointStatus, HistoryRow, Metrics, Progress
from finetune_api.resource import TrainingSpec
from finetune_api.status import Failure


class RunIdentity(Model):
    """Whose run it is."""

    namespace: str
    name: str
    uid: str
    """Tells two runs of the same name apart: an artifact with another uid is somebody else's."""


class SecretFolder(StrictModel):
    """A folder with one file per key."""

    directory: str
    """Absolute path; it is empty or absent where the Secret does not exist."""
    source: str
    """What to call it in an error, such as `Secret team-a/s3`."""


class StorageAccess(StrictModel):
    """How S3 is reached."""

    endpoint: str = ""
    """URL of an S3-compatible server; empty = AWS."""
    region: str = ""
    """Region; empty = `us-east-1`."""
    credentials: SecretFolder | None = None
    """Where the keys are; None = the SDK's own chain (workload identity)."""
    checksums: Checksums = Checksums.AUTO
    """Whether uploads carry a checksum that the server checks."""


class ReportTarget(StrictModel):
    """Where progress goes."""

    url: str
    """Progress reports are POSTed here."""
    token_file: str
    """File with the bearer token, read anew for every report since it is rotated."""
    ca_file: str | None = None
    """PEM file of the authorities that an `https` URL is checked against; None = those of the image."""


class GpuSize(StrictModel):
    """The kind of GPU that training will get, as far as it is known before."""

    name: str
    """What to call it: an entry of the operator's table, a product, or the resource that is asked for."""
    memory_bytes: int | None = Field(default=None, ge=1)
    """Memory of one; None = nobody knows."""


class RunRoot(Model):
    """Where a run keeps what it writes, and how that is reached: all that an errand has to know.

    Read tolerantly, so that the order of a stage serves as well.
    """

    identity: RunIdentity
    output_uri: Uri
    """The run's own root, `s3://…/<namespace>/<name>/<uid>` or `file:///…`; nothing is written elsewhere. In ASCII."""
    storage: StorageAccess = StorageAccess()
    result_file: str | None = None
    """Where the answer goes; None = standard output."""


class RunSpec(RunRoot, StrictModel):
    """The order: what to train, from what, into where. URIs are resolved and no secret is in it."""

    training: TrainingSpec
    """The user's spec; dataset and model URIs are `s3://`, `hf://` or `file:///`."""
    attempt: int = Field(default=1, ge=1)
    """Number of the try; what it writes lies under `artifacts/<attempt>-<writer>`."""
    resolved: Resolved = Resolved()
    """What `prepare` found; `train` takes this revision and no other."""
    model_credentials: SecretFolder | None = None
    """Folder with `HF_TOKEN`."""
    tracking_credentials: SecretFolder | None = None
    """Folder with the keys of the trackers."""
    card: dict[str, str] = Field(default_factory=dict)
    """Free text for model card and lock file, by key."""
    report: ReportTarget | None = None
    """Where progress goes; None = only the log."""
    scratch_directory: str = "/tmp"
    """A folder with room for model and data; what is in it may be lost."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of each pod; 0 = CPU."""
    gpu: GpuSize | None = None
    """Which GPU training will get: `prepare` finds out whether the model fits. None = a CPU."""
    processes: int = Field(default=1, ge=1)
    """Training processes of each pod, one device each. `prepare` reckons with them, `train` starts them."""
    nodes: int = Field(default=1, ge=1)
    """Pods that train together; which of them a pod is says its environment (`ENV_NODE_RANK`)."""
    rendezvous: str | None = Field(default=None, pattern=r"^[^:]+:\d+$")
    """`HOST:PORT` on the first pod, where several pods meet to train; None = this pod is alone."""
    meeting_seconds: int = Field(default=900, ge=1)
    """How long they wait for one another: some may still be waiting for a node, or for their image."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of each pod; None = as many as there are."""
    memory_bytes: int | None = Field(default=None, ge=1)
    """Memory limit of the pod; None = what the machine has left."""
    memory_rung: int = Field(default=0, ge=0)
    """Rung of the memory ladder: how often an attempt of this run had no memory left."""
    grace_seconds: int = Field(default=30, ge=1)
    """Seconds between SIGTERM and SIGKILL."""

    @property
    def devices(self) -> int:
        """Devices that share the rows of a step."""
        return self.nodes * self.processes

    @model_validator(mode="after")
    def _one_device_each(self) -> Self:
        if self.gpus and self.processes > self.gpus:
            raise ValueError(f"processes is {self.processes}, but there are {self.gpus} gpus")
        if self.rendezvous is not None and self.nodes == 1:
            raise ValueError("rendezvous is for nodes above 1")
        return self


class RunResult(Model):
    """The answer of one stage: what it found, or a failure; both where what it found did not pass the gate.

    Read tolerantly: a pod may outlive the upgrade of the operator that made it.
    """

    stage: Stage
    failure: Failure | None = None
    """Set when the stage failed; then nothing was published."""
    data: DataStatus | None = None
    effective_hyperparameters: EffectiveHyperparameters | None = None
    resolved: Resolved | None = None
    plan: PlanStatus | None = None
    estimate: TrainingEstimate | None = None
    progress: Progress | None = None
    metrics: Metrics | None = None
    best: BestStatus | None = None
    checkpoint: CheckpointStatus | None = None
    """The newest whole one, which a further attempt goes on from."""
    evaluation: EvaluationStatus | None = None
    artifact: ArtifactStatus | None = None

    def to_message(self, limit: int = TERMINATION_MESSAGE_BYTES) -> str:
        """The result as one JSON line of at most `limit` bytes; free text is cut first, so that it always parses.

        Warnings go first, then the datasets' revisions, then the failure's message and remedy are halved, then
        everything goes that is not the failure or the artifact itself.
        """
        result = self
        while len(text := result.model_dump_json(by_alias=True, exclude_none=True).encode()) > limit:
            result = result._shortened()
        return text.decode()

    def _shortened(self) -> Self:
        if self.data and self.data.warnings:
            return self.model_copy(update={"data": self.data.model_copy(update={"warnings": self.data.warnings[:-1]})})
        if self.resolved and self.resolved.dataset_revisions:  # The prepared index in S3 has them too.
            return self.model_copy(update={"resolved": self.resolved.model_copy(update={"dataset_revisions": {}})})
        if self.failure and max(len(self.failure.message), len(self.failure.remedy)) > SHORT_TEXT:
            return self.model_copy(update={"failure": _halved(self.failure)})
        bare = type(self)(stage=self.stage, failure=self.failure, artifact=self.artifact)
        if bare == self:
            raise ValueError("the limit is too small for even the artifact's address")
        return bare


class CleanupResult(Model):
    """The answer of a cleanup."""

    removed: Count = 0
    """Objects that were removed; what an earlier try had removed does not count."""
    failure: Failure | None = None
    """Why something may be left."""

    def to_message(self) -> str:
        """The result as one JSON line that fits into a termination message."""
        text = self.model_dump_json(by_alias=True, exclude_none=True)
        if self.failure is None or len(text.encode()) <= TERMINATION_MESSAGE_BYTES:
            return text
        return self.model_copy(update={"failure": _halved(self.failure)}).to_message()


SHORT_TEXT = 100
"""A text of so many characters is not cut any further."""


def _halved(failure: Failure) -> Failure:
    """The failure with half of its free text."""
    texts = {"message": failure.message, "remedy": failure.remedy}
    short = {name: text if len(text) <= SHORT_TEXT else f"{text[: len(text) // 2]}…" for name, text in texts.items()}
    return failure.model_copy(update=short)


class ProgressReport(Model):
    """What a trainer POSTs while it works, and once more when it is done."""

    identity: RunIdentity
    stage: Stage
    attempt: int = Field(ge=1, le=LARGEST_COUNT)
    activity: Activity
    sequence: Count = 0
    """Counts the reports of one pod from 1, so that a late one is not taken for news; 0 = they are not counted."""
    plan: PlanStatus | None = None
    progress: Progress | None = None
    metrics: Metrics | None = None
    history: Annotated[list[HistoryRow], Field(max_length=STATUS_HISTORY_ROWS)] = Field(default_factory=list)
    """The whole curve so far, thinned by the trainer."""
    best: BestStatus | None = None
    checkpoint: CheckpointStatus | None = None
    """The newest whole one."""
    result: RunResult | None = None
    """The final answer, in the last report of a stage."""
