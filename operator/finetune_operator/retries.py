"""Tries after failures of the cluster: how long the next one waits, and what is said meanwhile. Pure."""

from dataclasses import replace
from datetime import timedelta

from finetune_api.names import StageState
from finetune_api.reasons import Reason
from finetune_api.status import Failure

from finetune_operator import cost, stages, steps
from finetune_operator.steps import Run
from finetune_operator.verdict import Attempt, Step


def next_try(run: Run, attempt: Attempt, failure: Failure, *, restarted: bool) -> Step:
    """Waiting for the next attempt, twice as long as for the one before; `restarted`: it counts as a restart, too."""
    settings, number = run.settings, attempt.number + 1
    seconds = min(settings.retry_wait_seconds * 2.0 ** min(run.status.retries, 30), settings.retry_wait_limit_seconds)
    wait = timedelta(seconds=seconds)
    status = stages.put(cost.closed(run), attempt.stage, StageState.PENDING, attempt=number, message=failure.message)
    changes: dict[str, object] = {
        "failure": failure,
        "retries": run.status.retries + 1,
        "restarts": run.status.restarts + restarted,
        "restarts_in_a_row": 0,
        "retry_at": (run.now + wait).replace(microsecond=0),
    }
    run = replace(run, status=status.model_copy(update=changes))
    return steps.waiting(run, Reason.WAITING_TO_RETRY, message(run), wait)


def time_left(run: Run) -> timedelta | None:
    """How long the next attempt has to wait; None once it is due, and where the wait is longer than any that we set.

    That is one of a clock which was ahead, or of a status that somebody has edited.
    """
    left = run.status.retry_at - run.now if run.status.retry_at else timedelta(0)
    longest = timedelta(seconds=run.settings.retry_wait_limit_seconds)
    return left if timedelta(0) < left <= longest else None


def message(run: Run) -> str:
    """When the next attempt starts, and why there is one."""
    failure, limit = run.status.failure, run.finetune.spec.retry_limit
    why = f"{failure.reason}: {failure.message}" if failure else "the last attempt failed"
    return f"retry {run.status.retries} of {limit} starts at {run.status.retry_at:%H:%M:%S} UTC; {why}"


def used_up(run: Run, failure: Failure) -> Step:
    """Held until a person allows more."""
    limit = run.finetune.spec.retry_limit
    words = f"spec.retryLimit {limit} is reached; raise it to go on; {failure.reason}: {failure.message}"
    return replace(steps.held(run, failure), reason=Reason.RETRIES_EXHAUSTED, message=words)
