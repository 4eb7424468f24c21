"""Every name that more than one part of the product has to spell: group, labels, conditions, reasons, paths.

Whoever needs one of these imports it; a second spelling of the same fact is a mistake.
"""

from enum import IntEnum, StrEnum

GROUP = "finetune-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "Finetune"
PLURAL = "finetunes"
SHORT_NAME = "ft"

MAX_NAME_LENGTH = 40
"""Longest `metadata.name`, so that `<name>-<uid, 8>-train-<attempt>` stays a valid Job and label name (63)."""

FIELD_MANAGER = "finetune-operator"
"""The one field manager of server-side apply: whoever applies with it owns the whole status."""

MANAGER = f"{GROUP}/{FIELD_MANAGER}"
"""`spec.managedBy` of a Finetune that this operator reconciles, where it is not left empty."""

OWN_MANAGERS = ("", MANAGER)
"""Every `spec.managedBy` of a Finetune that this operator reconciles."""

LABEL_NAME = f"{GROUP}/name"
LABEL_UID = f"{GROUP}/uid"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_CLEANUP_OF = f"{GROUP}/cleanup-of"
"""On a cleanup Job and its pod: the uid of the Finetune, which owns neither, since they outlive it."""
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
"""Labels by which Kueue finds the Jobs that it is to admit. Source: Kueue, "Run A Kubernetes Job"."""

CLEANUP_FINALIZER = f"{GROUP}/cleanup"
"""Keeps a Finetune with `output.deletionPolicy: Delete` in the API server until what it wrote is removed."""

ORDER_ANNOTATION = f"{GROUP}/order"
"""Annotation of an errand's pod with its order, which the pod sees as `RUN_FILE`: no ConfigMap outlives the errand."""

CARD_ANNOTATION_PREFIX = f"card.{GROUP}/"
"""Annotations below this prefix are copied to model card and lock file; they never affect training."""

TRAINER_CONTAINER = "trainer"
REPORT_AUDIENCE = "finetune-operator-progress"
"""Audience of the projected token that a trainer shows to the progress endpoint, and of nothing else."""

GPU_PRODUCT_LABEL = "nvidia.com/gpu.product"
GPU_MEMORY_LABEL = "nvidia.com/gpu.memory"
"""Labels of nodes with GPUs: which, and of how many MiB each. Source: NVIDIA, "GPU Feature Discovery"."""

REPORT_PATH = "/v1/progress"
"""Where the operator's server takes ProgressReports."""

KUBEFLOW_PATH = "/v1/kubeflow"
"""Where it takes progress in Kubeflow's words."""

ENV_KUBEFLOW_URL = "KUBEFLOW_TRAINER_SERVER_URL"
ENV_KUBEFLOW_TOKEN_FILE = "KUBEFLOW_TRAINER_SERVER_TOKEN"
ENV_KUBEFLOW_CA_FILE = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
"""What tells a Hugging Face Trainer where to report, with which token, and whose certificates to believe.

Source: transformers, KubeflowCallback.
"""

RUN_DIRECTORY = "/finetune/run"
RUN_FILE = f"{RUN_DIRECTORY}/run.json"
SECRETS_DIRECTORY = "/finetune/secrets"
DATASETS_DIRECTORY = "/finetune/datasets"
VOLUMES_DIRECTORY = "/finetune/volumes"
TOKEN_DIRECTORY = "/finetune/token"
TOKEN_FILE = f"{TOKEN_DIRECTORY}/token"
REPORT_CA_DIRECTORY = "/finetune/report-ca"
REPORT_CA_KEY = "ca.crt"
REPORT_CA_FILE = f"{REPORT_CA_DIRECTORY}/{REPORT_CA_KEY}"
SCRATCH_DIRECTORY = "/scratch"
TERMINATION_LOG = "/dev/termination-log"

TERMINATION_MESSAGE_BYTES = 4000
"""Longest result message. The kubelet keeps the last 4096 bytes of a container's termination message; the writer stays
below, and cuts free text first. Source: Kubernetes, "Determine the Reason for Pod Failure"."""

REPORT_MAX_BYTES = 64 * 1024
"""Largest progress report the operator reads."""

STATUS_HISTORY_ROWS = 60
"""Most `status.history` rows; the whole series is in `training_log.jsonl`."""

STATUS_MESSAGE_LENGTH = 400
"""Longest message of a condition or stage that the operator writes, so that a status stays below 16 KiB."""

STATUS_WARNING_LENGTH = 200
"""Longest of the at most 8 warnings in `status.data`; the data report has them whole."""

ENV_WRITER_ID = "FINETUNE_WRITER_ID"
"""Who writes: the pod's uid. What it writes to S3 lies under its first 8 characters."""

ENV_LOG_FORMAT = "FINETUNE_LOG_FORMAT"
"""`json` for one JSON object a line, else readable text."""

ENV_NODE_RANK = "JOB_COMPLETION_INDEX"
"""Which pod of a gang this is, from 0. Kubernetes sets it in every pod of an Indexed Job."""

NODE_RANK_ANNOTATION = "batch.kubernetes.io/job-completion-index"
"""The same number, as an annotation of the pod."""

RENDEZVOUS_PORT = 29500
"""Port of the first pod of a gang on which all of them meet; torchrun's own default."""

RESERVED_POD_LABELS = (MANAGED_BY_LABEL, QUEUE_LABEL, "job-name", "controller-uid")
"""Labels of a train pod that are not the user's to set, beside those below `RESERVED_PREFIXES`."""

RESERVED_PREFIXES = (f"{GROUP}/", "batch.kubernetes.io/")
"""Labels and annotations below these belong to the operator and to the Job controller."""

S3_ACCESS_KEY = "AWS_ACCESS_KEY_ID"
S3_SECRET_KEY = "AWS_SECRET_ACCESS_KEY"
S3_SESSION_TOKEN = "AWS_SESSION_TOKEN"
HF_TOKEN_KEY = "HF_TOKEN"
WANDB_KEY = "WANDB_API_KEY"
MLFLOW_TOKEN = "MLFLOW_TRACKING_TOKEN"
MLFLOW_USERNAME = "MLFLOW_TRACKING_USERNAME"
MLFLOW_PASSWORD = "MLFLOW_TRACKING_PASSWORD"

MANIFEST_FILE = "manifest.json"
LOCK_FILE = "run.lock.json"
PREPARED_FOLDER = "prepared"
CHECKPOINTS_FOLDER = "checkpoints"
ARTIFACTS_FOLDER = "artifacts"
TRACKING_FOLDER = "tracking"


class Stage(StrEnum):
    """A stage of a run is one Job."""

    PREPARE = "prepare"
    TRAIN = "train"


class Errand(StrEnum):
    """A small Job beside the stages of a run: it needs no GPU, no data and no model."""

    RESULT = "result"
    """Read from S3 what a stage came to whose own words were lost."""
    CLEANUP = "cleanup"
    """Remove what the run wrote."""


class StageState(StrEnum):
    """Where a stage is."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"
    """Its Job is deleted, for a suspension, a cancellation or a limit; what goes on is the next attempt."""


class Activity(StrEnum):
    """What a trainer is doing while it reports."""

    PREPARING = "preparing"
    LOADING = "loading"
    TRAINING = "training"
    EVALUATING = "evaluating"
    PUBLISHING = "publishing"


class Phase(StrEnum):
    """One word for a table column, derived from the conditions and never read back."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    QUEUED = "Queued"
    TRAINING = "Training"
    PUBLISHING = "Publishing"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    CANCELLED = "Cancelled"


class ConditionType(StrEnum):
    """Condition types. Ready, Reconciling and Stalled mean what kstatus means by them."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    SUCCEEDED = "Succeeded"
    SUSPENDED = "Suspended"
    DATA_VALIDATED = "DataValidated"
    SCHEDULED = "Scheduled"
    PROGRESSING = "Progressing"
    GPU_BUSY = "GpuBusy"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"
    ARTIFACT_PUBLISHED = "ArtifactPublished"


class FailureClass(StrEnum):
    """What kind of thing went wrong: it alone decides what happens next."""

    INVALID_DATA = "InvalidData"
    INVALID_CONFIG = "InvalidConfig"
    ACCESS_DENIED = "AccessDenied"
    INFRASTRUCTURE = "Infrastructure"
    GPU_OUT_OF_MEMORY = "GpuOutOfMemory"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    DISK_FULL = "DiskFull"
    DIVERGED = "Diverged"
    GATE_FAILED = "GateFailed"
    PREEMPTED = "Preempted"
    NOT_STARTED = "NotStarted"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    BUDGET_EXCEEDED = "BudgetExceeded"


class Exit(IntEnum):
    """Exit codes of `python -m finetune_trainer`: what a pod says when its message was lost."""

    OK = 0
    USER_ERROR = 42
    INFRASTRUCTURE = 43
    GPU_OUT_OF_MEMORY = 44
    DIVERGED = 45
    GATE_FAILED = 46
    TERMINATED = 143
    """128 + SIGTERM: somebody asked the pod to leave."""
