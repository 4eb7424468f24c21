"""A Finetune that is being deleted: its children go first, then what it wrote, then itself. Pure.

Only `output.deletionPolicy: Delete` sets the finalizer that makes it wait, and never for ever: what is not removed in
time stays, and an Event says so.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.names import CLEANUP_FINALIZER, STATUS_MESSAGE_LENGTH
from finetune_api.output import DeletionPolicy
from finetune_api.reasons import Reason
from finetune_api.resource import Finetune
from finetune_api.run import CleanupResult
from finetune_api.words import one_line, shortened
from pydantic import ValidationError

from finetune_operator.manifests import run_root
from finetune_operator.observed import Cleanup, Job, JobState, Observed
from finetune_operator.settings import Settings
from finetune_operator.verdict import Turn

CHECK = timedelta(seconds=5)
"""How often children are looked at that were told to leave."""


@dataclass(frozen=True)
class Departure:
    """What a pass does for a Finetune that is being deleted."""

    stop: tuple[Job, ...] = ()
    """Jobs to delete."""
    cleanup_seconds: int | None = None
    """The cleanup Job is to be made, and may take so long."""
    farewell: Turn | None = None
    """The finalizer is to be dropped, with these words on what has become of the files."""
    check_again: timedelta | None = None
    """When to look again although nothing happened."""


def needs_finalizer(finetune: Finetune) -> bool:
    """True where the finalizer is to be set before anything can be written to S3."""
    wanted = finetune.spec.output.deletion_policy is DeletionPolicy.DELETE
    return wanted and CLEANUP_FINALIZER not in finetune.metadata.finalizers


def depart(finetune: Finetune, observed: Observed, settings: Settings, now: datetime) -> Departure:
    """The next step of going, for a Finetune with our finalizer."""
    cleanup, left = observed.cleanup, _time_left(finetune, settings, now)
    if cleanup and cleanup.state is not JobState.RUNNING:
        return Departure(farewell=_outcome(finetune, cleanup))
    jobs = (*observed.jobs, *observed.readings)
    leaving = [*(job.name for job in jobs), *(pod.name for pod in observed.orphans if pod.is_active)]
    if left <= timedelta(0):
        return Departure(farewell=kept(finetune, f"time is up; {_waiting_for(cleanup, leaving)}"))
    if cleanup:
        return Departure(check_again=left)
    if leaving:
        return Departure(stop=tuple(job for job in jobs if not job.is_leaving), check_again=min(left, CHECK))
    return Departure(cleanup_seconds=max(1, int(left.total_seconds())), check_again=left)


def kept(finetune: Finetune, why: str) -> Turn:
    """Something of what the run wrote may be left."""
    message = f"what the run wrote may be left at {run_root(finetune).output_uri}: {why}"
    return Turn(True, Reason.CLEANUP_FAILED, shortened(one_line(message), STATUS_MESSAGE_LENGTH))


def _time_left(finetune: Finetune, settings: Settings, now: datetime) -> timedelta:
    """Until it goes, whatever is left of it: the pods' grace period, and the time for cleaning up."""
    grace = finetune.spec.trainer.termination_grace_period_seconds
    deleted_at = finetune.metadata.deletion_timestamp or now
    return deleted_at + timedelta(seconds=grace + settings.cleanup_seconds) - now


def _outcome(finetune: Finetune, cleanup: Cleanup) -> Turn:
    try:
        result = CleanupResult.model_validate_json(cleanup.message or "")
    except ValidationError:
        result = CleanupResult()
    if cleanup.state is JobState.FAILED:
        failure = result.failure
        why = f"{failure.message} {failure.remedy}" if failure else cleanup.waiting or "nobody says why"
        return kept(finetune, why)
    message = f"{result.removed} objects were removed below {run_root(finetune).output_uri}"
    return Turn(False, Reason.CLEANED_UP, message)


def _waiting_for(cleanup: Cleanup | None, leaving: list[str]) -> str:
    if cleanup:
        return f"the cleanup Job is not done: {cleanup.waiting or 'it still runs'}"
    return f"{leaving[0]} has not gone yet" if leaving else "the cleanup Job could not be made"
