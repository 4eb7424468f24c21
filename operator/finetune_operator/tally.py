"""What runs came to, counted for Prometheus from each status that is written and the one before it."""

from collections.abc import Iterator
from enum import StrEnum

from finetune_api.names import FailureClass, Phase, Stage, StageState
from finetune_api.placement import Trainer
from finetune_api.status import FinetuneStatus
from prometheus_client import Counter

from finetune_operator import stages

ENDS = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)
"""Phases that a run does not leave."""


class AttemptEnd(StrEnum):
    """How a train attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    PREEMPTED = "preempted"
    """The cluster took a pod away: what it had reached is kept as far as the last checkpoint."""
    STOPPED = "stopped"
    """Suspended, cancelled, at a limit, or taken back by its queue: kept likewise."""


FINISHED = Counter("finetune_finished_total", "Finetunes that have ended for good, by phase", ["phase"])
FAILED_ATTEMPTS = Counter("finetune_attempt_failures_total", "Attempts that failed, by class of failure", ["class"])
GPU_SECONDS = Counter(
    "finetune_gpu_seconds_total", "GPU seconds of train pods that have ended, by how their attempt did", ["outcome"]
)
COST = Counter("finetune_cost_total", "What train pods have cost, by currency of the price table", ["currency"])
LOST_COST = Counter(
    "finetune_cost_lost_total", "The part of it whose work no checkpoint kept, once an attempt is over", ["currency"]
)

for phase in ENDS:
    FINISHED.labels(phase)
for kind in FailureClass:
    FAILED_ATTEMPTS.labels(kind)
for end in AttemptEnd:
    GPU_SECONDS.labels(end)


def count(before: FinetuneStatus, after: FinetuneStatus, trainer: Trainer) -> None:
    """Count what has happened between the two statuses of a run."""
    if after.phase in ENDS and after.phase != before.phase:
        FINISHED.labels(after.phase).inc()
    for kind in failed_attempts(before, after):
        FAILED_ATTEMPTS.labels(kind).inc()
    if seconds := after.active_seconds - before.active_seconds:
        GPU_SECONDS.labels(attempt_end(before, after)).inc(seconds * trainer.nodes * trainer.gpus_per_node)
    if after.cost and after.cost.currency:
        COST.labels(after.cost.currency).inc(max(0.0, _spent(after) - _spent(before)))
        LOST_COST.labels(after.cost.currency).inc(max(0.0, _lost(after) - _lost(before)))


def failed_attempts(before: FinetuneStatus, after: FinetuneStatus) -> Iterator[FailureClass]:
    """The class of each attempt that has failed in between."""
    if after.restarts > before.restarts:
        yield FailureClass.PREEMPTED
    elif after.failure and (after.failure != before.failure or _tries(after) > _tries(before)):
        yield after.failure.failure_class


def attempt_end(before: FinetuneStatus, after: FinetuneStatus) -> AttemptEnd:
    """How the train attempt ended whose time was added in between."""
    if after.restarts > before.restarts:
        return AttemptEnd.PREEMPTED
    was, entry = stages.find(before, Stage.TRAIN), stages.find(after, Stage.TRAIN)
    if entry is None or was is None or entry.attempt != was.attempt:
        return AttemptEnd.FAILED
    by_state = {StageState.SUCCEEDED: AttemptEnd.SUCCEEDED, StageState.FAILED: AttemptEnd.FAILED}
    return by_state.get(entry.state, AttemptEnd.STOPPED)


def _tries(status: FinetuneStatus) -> int:
    return status.retries + status.memory_rung


def _spent(status: FinetuneStatus) -> float:
    return float((status.cost and status.cost.spent) or 0)


def _lost(status: FinetuneStatus) -> float:
    """Of attempts that are over and done with: a pod that leaves may still save a checkpoint."""
    if status.cost is None:
        return 0.0
    if status.phase in ENDS:
        return float(status.cost.lost or 0)
    return float(status.cost.ledger.lost) if status.cost.ledger else 0.0
