"""The reasons that the operator itself gives, in conditions, failures and Events: what each means, and the way out.

The set is closed. Beside it stand the trainer's own reasons, which `docs/states.md` lists by class of failure, and
those of Kubernetes for a pod that was taken away or not let in, such as PreemptionByScheduler or
UnexpectedAdmissionError.
"""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """CamelCase words for programs; `REASONS` has the sentences for people."""

    PREPARING = "Preparing"
    TRAINING = "Training"
    WAITING_FOR_BASE_MODEL = "WaitingForBaseModel"
    WAITING_FOR_QUEUE = "WaitingForQueue"
    WAITING_FOR_PODS = "WaitingForPods"
    WAITING_TO_RETRY = "WaitingToRetry"
    REFUSED = "Refused"
    STOPPING = "Stopping"
    SUSPENDING = "Suspending"
    CANCELLING = "Cancelling"
    RESTARTED = "Restarted"
    NO_PROGRESS = "NoProgress"
    GPU_IDLE = "GpuIdle"
    READING_RESULT = "ReadingResult"
    CLEANED_UP = "CleanedUp"
    CLEANUP_FAILED = "CleanupFailed"
    RETAINED = "Retained"
    NODE_LOST = "NodeLost"

    SUCCEEDED = "Succeeded"
    SUSPENDED = "Suspended"
    CANCELLED = "Cancelled"

    ROWS_READY = "RowsReady"
    POD_SCHEDULED = "PodScheduled"
    UNSCHEDULABLE = "Unschedulable"
    STEPS_DONE = "StepsDone"
    STOPPED_EARLY = "StoppedEarly"
    COMPARED = "Compared"
    NO_EVALUATION_ROWS = "NoEvaluationRows"
    MANIFEST_WRITTEN = "ManifestWritten"

    RETRIES_EXHAUSTED = "RetriesExhausted"
    PENDING_DEADLINE_EXCEEDED = "PendingDeadlineExceeded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    BUDGET_EXCEEDED = "BudgetExceeded"

    BASE_MODEL_NOT_FOUND = "BaseModelNotFound"
    BASE_MODEL_FAILED = "BaseModelFailed"
    REMOTE_CODE_FORBIDDEN = "RemoteCodeForbidden"
    OUTPUT_FORBIDDEN = "OutputForbidden"
    ADDRESS_FORBIDDEN = "AddressForbidden"
    JOB_INVALID = "JobInvalid"

    POD_DELETED = "PodDeleted"
    JOB_DELETED = "JobDeleted"
    NO_MESSAGE = "NoMessage"
    POD_LOST = "PodLost"
    RESULT_LOST = "ResultLost"
    OOM_KILLED = "OOMKilled"
    EVICTED = "Evicted"


@dataclass(frozen=True)
class ReasonFacts:
    """What a reason means."""

    meaning: str
    way_out: str
    """What moves the run on, or what a person can do."""


NOTHING = "Nothing: it moves on by itself."
IS_OVER = "Nothing: the run is over."
AGAIN = "Nothing: the next attempt starts by itself."

GROUPS: dict[str, dict[Reason, ReasonFacts]] = {
    "While it goes on": {
        Reason.PREPARING: ReasonFacts("The prepare stage is asked for, or runs.", NOTHING),
        Reason.TRAINING: ReasonFacts("The train stage is asked for, or runs.", NOTHING),
        Reason.WAITING_FOR_BASE_MODEL: ReasonFacts(
            "The Finetune that `model.finetuneRef` names is not there yet, or has not succeeded yet.",
            "That Finetune. One that is not there for a minute fails this one (BaseModelNotFound).",
        ),
        Reason.WAITING_FOR_QUEUE: ReasonFacts(
            "The Job is suspended: its queue has yet to admit it. No deadline counts.",
            "The queue; its own words are in the message.",
        ),
        Reason.WAITING_FOR_PODS: ReasonFacts(
            "A pod of an earlier attempt is not gone yet: there are never two gangs at once.",
            "The pod goes at the end of its grace period; on a node that is gone it needs a forced delete.",
        ),
        Reason.WAITING_TO_RETRY: ReasonFacts(
            "An attempt failed, and the next one starts at `status.retryAt`.",
            "Nothing, unless the message names a cause that stays.",
        ),
        Reason.REFUSED: ReasonFacts(
            "The API server refused the attempt's objects; the message has its words, such as an exceeded quota.",
            "Room in the quota, the right, the name, or what a policy wants; it is tried again every 15 seconds, until "
            "`spec.pendingDeadlineSeconds` holds the run.",
        ),
        Reason.STOPPING: ReasonFacts("A limit is reached, and the attempt's pods are on their way out.", NOTHING),
        Reason.SUSPENDING: ReasonFacts("The train pods save a checkpoint and go.", NOTHING),
        Reason.CANCELLING: ReasonFacts("The pods go; a run that is published by then has succeeded.", NOTHING),
        Reason.RESTARTED: ReasonFacts(
            "Only an Event: the cluster took a pod away, and the next attempt starts.", AGAIN
        ),
    },
    "What is seen while it goes on, and at its end": {
        Reason.NO_PROGRESS: ReasonFacts(
            "Nothing was heard of the trainer for `spec.guards.stallSeconds`: it hangs, or its reports do not arrive.",
            "See its log. `spec.guards.onStall: Restart` starts the next attempt, which counts as a retry.",
        ),
        Reason.GPU_IDLE: ReasonFacts(
            "The GPUs that the run holds wait for their host, which is slow or has little for them to do.",
            "Raise `trainer.cpu` or `hyperparameters.trainBatchSize`, or take a smaller GPU.",
        ),
        Reason.READING_RESULT: ReasonFacts(
            "A Job is complete and its words are lost: another Job reads from S3 what it came to.",
            "Nothing: the message says what keeps that Job from being made; after six minutes the result is lost.",
        ),
        Reason.NODE_LOST: ReasonFacts(
            "A pod did not leave in time, and its node is gone or not ready: it is removed, and the run starts again.",
            NOTHING,
        ),
        Reason.CLEANED_UP: ReasonFacts(
            "Only an Event, at the deletion of a Finetune with `deletionPolicy: Delete`: what it wrote is removed.",
            IS_OVER,
        ),
        Reason.CLEANUP_FAILED: ReasonFacts(
            "Only an Event, at such a deletion: what the run wrote may be left; the message says where, and why.",
            "Remove it by hand.",
        ),
        Reason.RETAINED: ReasonFacts(
            "Only an Event, at the deletion of a Finetune that got the finalizer by hand: by its `deletionPolicy` "
            "what it wrote stays.",
            IS_OVER,
        ),
    },
    "How it ended": {
        Reason.SUCCEEDED: ReasonFacts("The artifact is published and its manifest written.", IS_OVER),
        Reason.SUSPENDED: ReasonFacts(
            "`spec.suspend` is true, and no train pod is left.", "Set `spec.suspend` to false."
        ),
        Reason.CANCELLED: ReasonFacts("`spec.cancel` is true; what lies in S3 stays.", IS_OVER),
    },
    "What was reached": {
        Reason.ROWS_READY: ReasonFacts("The rows are read, checked, split and tokenised.", NOTHING),
        Reason.POD_SCHEDULED: ReasonFacts("The newest pod has a node.", NOTHING),
        Reason.UNSCHEDULABLE: ReasonFacts(
            "The scheduler finds no node for the pod; the message has its words.",
            "A node that fits `spec.trainer`, within `spec.pendingDeadlineSeconds`.",
        ),
        Reason.STEPS_DONE: ReasonFacts("Every optimizer step is done; evaluation and publishing follow.", NOTHING),
        Reason.STOPPED_EARLY: ReasonFacts(
            "The dev loss had stopped falling (`hyperparameters.earlyStopping`); the best weights are taken.", NOTHING
        ),
        Reason.COMPARED: ReasonFacts("Base and tuned model were measured on the same rows.", NOTHING),
        Reason.NO_EVALUATION_ROWS: ReasonFacts(
            "There are neither dev nor test rows, or no metric is asked for. That is no failure.",
            "Give the next run a split with dev rows, or a dataset of role test.",
        ),
        Reason.MANIFEST_WRITTEN: ReasonFacts("The artifact lies in S3, whole and checked.", NOTHING),
    },
    "Limits that hold a run until somebody raises them": {
        Reason.RETRIES_EXHAUSTED: ReasonFacts(
            "Infrastructure failed more often than `spec.retryLimit` allows.", "Cure the cause, then raise it."
        ),
        Reason.PENDING_DEADLINE_EXCEEDED: ReasonFacts(
            "No pod has started within `spec.pendingDeadlineSeconds`; the message has the cluster's own words.",
            "Cure what they say, then raise it.",
        ),
        Reason.DEADLINE_EXCEEDED: ReasonFacts(
            "Train pods have run for `spec.activeDeadlineSeconds`, all attempts together.", "Raise it."
        ),
        Reason.BUDGET_EXCEEDED: ReasonFacts("The run has spent what `spec.budget.limit` allows.", "Raise it."),
    },
    "What is wrong with the run itself, beside what the trainer finds": {
        Reason.BASE_MODEL_NOT_FOUND: ReasonFacts(
            "There is no Finetune of the name in `model.finetuneRef` in this namespace.",
            "Create that one, then this one again.",
        ),
        Reason.BASE_MODEL_FAILED: ReasonFacts(
            "The Finetune that `model.finetuneRef` names has failed, was cancelled, waits for this one, or is it.",
            "Name one that succeeds.",
        ),
        Reason.REMOTE_CODE_FORBIDDEN: ReasonFacts(
            "`model.trustRemoteCode` is true, and this operator's policy forbids it.",
            "Another model, or `settings.allowRemoteCode` of the chart.",
        ),
        Reason.OUTPUT_FORBIDDEN: ReasonFacts(
            "`output.uri` lies below none of the prefixes that this operator's policy allows.",
            "Another `output.uri`, or `settings.allowedOutputPrefixes` of the chart.",
        ),
        Reason.ADDRESS_FORBIDDEN: ReasonFacts(
            "A URL names the link of the node, or a cloud's metadata service.",
            "Name the server that is meant.",
        ),
        Reason.JOB_INVALID: ReasonFacts(
            "The API server will never take the attempt's objects; the message has its words.",
            "Correct the field that they name, then create the Finetune again.",
        ),
    },
    "How an attempt ended of which no trainer told": {
        Reason.POD_DELETED: ReasonFacts("Somebody deleted the pod while its Job ran.", AGAIN),
        Reason.JOB_DELETED: ReasonFacts("Somebody deleted the Job while it ran.", AGAIN),
        Reason.NO_MESSAGE: ReasonFacts(
            "The pod ended with a message that is missing or says nothing; its exit code decides the class.",
            "See its log.",
        ),
        Reason.POD_LOST: ReasonFacts("The Job failed, and none of its pods is left to say why.", AGAIN),
        Reason.RESULT_LOST: ReasonFacts("The Job is complete, and nobody can say what it found.", AGAIN),
        Reason.OOM_KILLED: ReasonFacts(
            "The kernel killed the container at its memory limit.", "Raise `trainer.memory`."
        ),
        Reason.EVICTED: ReasonFacts(
            "The kubelet evicted the pod: it used too much disk.", "Raise `trainer.ephemeralStorage`."
        ),
    },
}
"""Every reason, in the order in which the documentation shows them."""

REASONS: dict[Reason, ReasonFacts] = {reason: facts for group in GROUPS.values() for reason, facts in group.items()}
"""The facts of every reason."""
