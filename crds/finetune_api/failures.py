"""The failure classes in one table: exit code, what the operator does next, and a remedy."""

from dataclasses import dataclass
from enum import StrEnum

from finetune_api.names import Exit, FailureClass


class Next(StrEnum):
    """What follows a failed attempt."""

    FAIL = "fail"
    """The run itself is wrong: Failed, for good."""
    RETRY = "retry"
    """Again after a growing wait, up to `spec.retryLimit`."""
    RESTART = "restart"
    """Again at once, not counted."""
    HOLD = "hold"
    """Suspended and Stalled: it goes on once a limit is raised."""
    SMALLER = "smaller"
    """Training again at once on the next rung of the memory ladder, not counted, until the policy's last rung."""


PEER_LOST = "PeerLost"
"""Reason of a training process that failed because another one was gone."""

TERMINATED = "Terminated"
"""Reason of one that was told to stop."""

MEMORY_RUNGS = 3
"""Last rung of the memory ladder. Rung r trains in micro-batches of 1/2^r of the planned size, from rung 2 on with
activation checkpointing; the rows of a step stay the same."""


@dataclass(frozen=True)
class FailurePolicy:
    """One row of the table."""

    exit_code: Exit | None
    """What the trainer exits with; None where the cluster alone can tell."""
    next: Next
    remedy: str
    """What a user can do; the trainer's own words win where it has any."""
    last_rung: int = 0
    """With `Next.SMALLER`: the rung from which on a further failure is for good."""


POLICIES: dict[FailureClass, FailurePolicy] = {
    FailureClass.INVALID_DATA: FailurePolicy(
        Exit.USER_ERROR, Next.FAIL, "Correct the data at the place named, then create the Finetune again."
    ),
    FailureClass.INVALID_CONFIG: FailurePolicy(
        Exit.USER_ERROR, Next.FAIL, "Correct the field named, then create the Finetune again."
    ),
    FailureClass.ACCESS_DENIED: FailurePolicy(
        Exit.USER_ERROR, Next.FAIL, "Give the Secret or service account the permission named, then create it again."
    ),
    FailureClass.INFRASTRUCTURE: FailurePolicy(
        Exit.INFRASTRUCTURE, Next.RETRY, "Nothing, if it goes away; else see the pod's log and raise spec.retryLimit."
    ),
    FailureClass.GPU_OUT_OF_MEMORY: FailurePolicy(
        Exit.GPU_OUT_OF_MEMORY,
        Next.SMALLER,
        "Lower hyperparameters.maxSeqLength, set method.quantization, or choose a bigger GPU.",
        last_rung=MEMORY_RUNGS,
    ),
    FailureClass.HOST_OUT_OF_MEMORY: FailurePolicy(None, Next.SMALLER, "Raise trainer.memory.", last_rung=1),
    FailureClass.DISK_FULL: FailurePolicy(None, Next.FAIL, "Raise trainer.ephemeralStorage."),
    FailureClass.DIVERGED: FailurePolicy(
        Exit.DIVERGED, Next.FAIL, "Lower hyperparameters.learningRate, or add a warmup."
    ),
    FailureClass.GATE_FAILED: FailurePolicy(
        Exit.GATE_FAILED,
        Next.FAIL,
        "Train longer or on more data, or ask for less in evaluation.gate, then create the Finetune again.",
    ),
    FailureClass.PREEMPTED: FailurePolicy(Exit.TERMINATED, Next.RESTART, "Nothing: the run starts again by itself."),
    FailureClass.NOT_STARTED: FailurePolicy(
        None, Next.HOLD, "Cure what the message says, then raise spec.pendingDeadlineSeconds."
    ),
    FailureClass.DEADLINE_EXCEEDED: FailurePolicy(
        None, Next.HOLD, "Raise spec.activeDeadlineSeconds: the run goes on from its last checkpoint."
    ),
    FailureClass.BUDGET_EXCEEDED: FailurePolicy(
        None, Next.HOLD, "Raise spec.budget.limit: the run goes on from its last checkpoint."
    ),
}
