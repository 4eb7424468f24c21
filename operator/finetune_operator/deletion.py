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

from finetune_operator.observed import Cleanup, Job, JobState, Observed
from finetune_operator.order import run_root
from finetune_operator.settings import Settings
from finetune_operator.verdict import Turn

CHECK = timedelta(seconds=5)
"""How often children are looked at that were told to leave."""

LATEST = timedelta(seconds=10)
"""How much later than its own deadline the cleanup Job is given up."""


@dataclass(frozen=True)
class Departure:
    """What a pass does for a Finetune that is being deleted."""

    stop: tuple[Job, ...] = ()
    """Jobs to delete."""
    clean: bool = False
    """The cleanup Job is to be made."""
    farewell: Turn | None = None
    """The finalizer is to be dropped, with these words on what has become of the files."""
    check_again: timedelta | None = None
    """When to look again although nothing happened."""


def needs_finalizer(finetune: Finetune) -> bool:
    """True where the finalizer is to be set before anything can be written to S3."""
    wanted = finetune.spec.output.deletion_policy is DeletionPolicy.DELETE
    return wanted and CLEANUP_FINALIZER not in finetune.metadata.finalizers


def depart(finetune: Finetune, observed: Observed, settings: Settings, now: datetime) -> Departure:
    """The next step of going, for a Finetune with our finalizer, whoever set it: what it wrote goes by its policy."""
    if finetune.spec.output.deletion_policy is not DeletionPolicy.DELETE:
        return Departure(farewell=_retained(finetune))
    patience = timedelta(seconds=settings.cleanup_seconds)
    if observed.cleanup:
        return _cleaning(finetune, observed.cleanup, patience, now)
    jobs = (*observed.jobs, *observed.readings)
    leaving = {job.name: job.deleted_at for job in jobs}
    asked_at = finetune.metadata.deletion_timestamp
    leaving |= {pod.name: pod.leaves_by or asked_at for pod in observed.orphans if pod.is_active}
    for name, since in leaving.items():
        if since and now - since >= patience + grace_of(finetune):
            return Departure(farewell=kept(finetune, f"{name} has not gone yet"))
    if leaving:
        return Departure(stop=tuple(job for job in jobs if not job.is_leaving), check_again=CHECK)
    return Departure(clean=True, check_again=CHECK)


def is_refused_for_good(finetune: Finetune, settings: Settings, now: datetime) -> bool:
    """True where the cleanup Job has been refused for so long that nothing will come of it."""
    deleted_at = finetune.metadata.deletion_timestamp or now
    return now - deleted_at >= grace_of(finetune) + timedelta(seconds=settings.cleanup_seconds)


def grace_of(finetune: Finetune) -> timedelta:
    """How long its pods may take to leave."""
    return timedelta(seconds=finetune.spec.trainer.termination_grace_period_seconds)


def _cleaning(finetune: Finetune, cleanup: Cleanup, patience: timedelta, now: datetime) -> Departure:
    """Waiting for the cleanup Job; it ends by itself, but where its pod is on a node that is lost."""
    if cleanup.state is not JobState.RUNNING:
        return Departure(farewell=_outcome(finetune, cleanup))
    left = (cleanup.created_at or now) + patience + LATEST - now
    if left > timedelta(0):
        return Departure(check_again=left)
    return Departure(farewell=kept(finetune, f"time is up: {cleanup.waiting or 'the cleanup Job still runs'}"))


def kept(finetune: Finetune, why: str) -> Turn:
    """Something of what the run wrote may be left."""
    message = f"what the run wrote may be left at {run_root(finetune).output_uri}: {why}"
    return Turn(True, Reason.CLEANUP_FAILED, shortened(one_line(message), STATUS_MESSAGE_LENGTH))


def _retained(finetune: Finetune) -> Turn:
    """Nothing of what the run wrote is removed."""
    policy = finetune.spec.output.deletion_policy
    message = f"spec.output.deletionPolicy is {policy}: what the run wrote stays at {run_root(finetune).output_uri}"
    return Turn(False, Reason.RETAINED, message)


def _outcome(finetune: Finetune, cleanup: Cleanup) -> Turn:
    try:
        result = CleanupResult.model_validate_json(cleanup.message or "")
    except ValidationError:
        result = CleanupResult()
    if cleanup.state is JobState.FAILED:
        # Without the remedy, which is one for a run that is made again.
        return kept(finetune, (result.failure and result.failure.message) or cleanup.waiting or "nobody says why")
    message = f"{result.removed} objects were removed below {run_root(finetune).output_uri}"
    return Turn(False, Reason.CLEANED_UP, message)
