"""What to do next: a pure function of the Finetune, what was observed of its children, the settings and the clock.

It never raises, and called again with the status it returned it changes nothing. A terminal Finetune never gets
another Job, whatever happened to its children.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api.failures import POLICIES, Next
from finetune_api.findings import Resolved
from finetune_api.names import OWN_MANAGERS, ConditionType, FailureClass, Stage, StageState
from finetune_api.placement import Queue
from finetune_api.reasons import Reason
from finetune_api.resource import Finetune
from finetune_api.states import Verdict
from finetune_api.status import Failure, FinetuneStatus

from finetune_operator import base_model, cost, guards, limits, policy, results, retries, stages, steps
from finetune_operator.attempts import (
    a_failure,
    failure_of,
    findings_of,
    last_words,
    lost_result,
    result_of,
    vanished,
    worded,
)
from finetune_operator.bounded import bounded
from finetune_operator.conditions import condition_of, is_true
from finetune_operator.observed import Job, JobState, Observed, Pod
from finetune_operator.order import run_root
from finetune_operator.progress import back_to_checkpoint, merge_report, with_checkpoint
from finetune_operator.settings import Settings
from finetune_operator.steps import Run
from finetune_operator.verdict import Attempt, Step, concluded, is_over
from finetune_operator.volumes import as_written

LEAVING_CHECK = timedelta(seconds=5)
"""How often pods are looked at that were told to leave."""

LINGERING = timedelta(seconds=60)
"""A Job that was deleted so long ago is as good as gone once its pods are: a foreign finalizer may keep it for ever."""

START_CHECK = timedelta(seconds=10)
"""How often a Job whose pod has not started is looked at."""

RESTARTS_THAT_COUNT = 5
"""The fifth preemption in a row without a new checkpoint counts as an infrastructure failure: a run that gets nowhere
is not to be started for ever."""


@dataclass(frozen=True)
class Decision:
    """What a pass writes, then does."""

    status: FinetuneStatus
    start: Attempt | None = None
    """A Job to create once the status is written."""
    read: Attempt | None = None
    """An attempt whose own words are lost: another Job is to read what it came to."""
    stop: tuple[Job, ...] = ()
    """Jobs to delete once the status is written."""
    evict: tuple[Pod, ...] = ()
    """Pods without a Job, to delete: they hold up what follows, and count in no limit."""
    relabel: tuple[Job, ...] = ()
    """Jobs in a queue whose priority is no longer the wanted one."""
    remove: bool = False
    """The Finetune itself is to be deleted: its time after the end is up."""
    check_again: timedelta | None = None
    """When to look again although nothing happened."""

    @property
    def acts(self) -> bool:
        """Whether it creates, changes or deletes anything but the status."""
        return bool(self.start or self.read or self.stop or self.evict or self.relabel or self.remove)


def decide(finetune: Finetune, observed: Observed, settings: Settings, now: datetime) -> Decision:
    """The next status, and what to create and delete, if anything."""
    if finetune.metadata.deletion_timestamp or not is_ours(finetune):
        return Decision(finetune.status)
    if is_over(finetune.status):
        return _after_the_end(finetune, now)
    run = Run(finetune, observed, settings, now, finetune.status)
    step = _story(run)
    told = replace(step, status=guards.settled(step.status))
    status = bounded(cost.with_cost(run, concluded(told, finetune.metadata.generation, now)))
    relabel = tuple(job for job in observed.jobs if _is_ranked_wrong(job, finetune.spec.queue) and job not in step.stop)
    return Decision(status, step.start, step.read, step.stop, observed.strays, relabel, check_again=step.check_again)


def refused(finetune: Finetune, attempt: Attempt, message: str, *, for_good: bool, now: datetime) -> FinetuneStatus:
    """The status after the API server refused an attempt's objects: waiting with its words, or failed for good."""
    entry = stages.find(finetune.status, attempt.stage)
    status = stages.put(
        finetune.status,
        attempt.stage,
        StageState.PENDING,
        attempt=attempt.number,
        message=message,
        waiting_since=entry.waiting_since if entry else now,
    )
    step = Step(status, Verdict.WORKING, *stages.starting(status, attempt.stage, attempt.number))
    if for_good:
        failure = a_failure(FailureClass.INVALID_CONFIG, Reason.JOB_INVALID, message)
        step = Step(status.model_copy(update={"failure": failure}), Verdict.FAILED, failure.reason, message)
    return concluded(step, finetune.metadata.generation, now)


def is_ours(finetune: Finetune) -> bool:
    """False where `spec.managedBy` names another controller."""
    return finetune.spec.managed_by in OWN_MANAGERS


def _is_ranked_wrong(job: Job, queue: Queue) -> bool:
    """True while a Job waits with another priority. Kueue lets it change, but not be taken away, until it is admitted.

    Source: Kueue, "Workload Priority Class".
    """
    wanted = queue.priority_class_name
    return job.is_suspended and not job.is_leaving and bool(wanted) and job.queue_priority != wanted


def _after_the_end(finetune: Finetune, now: datetime) -> Decision:
    """Nothing but the wait until the Finetune is removed, where its user has set one."""
    seen = finetune.status.model_copy(update={"observed_generation": finetune.metadata.generation})
    ttl, ended = finetune.spec.ttl_seconds_after_finished, condition_of(seen, ConditionType.SUCCEEDED)
    if ttl is None or ended is None:
        return Decision(seen)
    left = ended.last_transition_time + timedelta(seconds=ttl) - now
    return Decision(seen, remove=True) if left <= timedelta(0) else Decision(seen, check_again=left)


def _story(run: Run) -> Step:
    """Base model, then prepare, then train; each step is gone through again in every pass."""
    run = replace(run, status=_with_last_words(run))
    if run.finetune.spec.cancel:
        return _cancelled(run)
    if (step := policy.forbidden(run) or base_model.awaited(run)) is not None:
        return step
    run = replace(run, status=base_model.with_model_uri(run))
    if not is_true(run.status, ConditionType.DATA_VALIDATED):
        step = _stage(run, Stage.PREPARE)
        if not is_true(step.status, ConditionType.DATA_VALIDATED):
            return step
        run = replace(run, status=step.status)
    return _suspended(run) if run.finetune.spec.suspend else _stage(run, Stage.TRAIN)


def _with_last_words(run: Run) -> FinetuneStatus:
    """The status with what training had reached when its newest attempt ended, however it ended."""
    job = _newest_training(run)
    said = last_words(job, run.observed.report) if job else None
    if said is None:
        return run.status
    status = with_checkpoint(run.status, said.checkpoint)
    return status.model_copy(update={"best": said.best or status.best})


def _newest_training(run: Run) -> Job | None:
    """The Job of the newest train attempt, while there is one."""
    entry = stages.find(run.status, Stage.TRAIN)
    return run.observed.job(Stage.TRAIN, entry.attempt) if entry else None


def _stage(run: Run, stage: Stage) -> Step:
    """Where one stage is: to be started, waiting for its retry, running, stopped, done or failed."""
    current = stages.find(run.status, stage)
    attempt = Attempt(stage, current.attempt if current else 1)
    if current and current.state is StageState.STOPPED:
        return _stopped(run, attempt)
    if (wait := retries.time_left(run)) is not None:
        return steps.waiting(run, Reason.WAITING_TO_RETRY, retries.message(run), wait)
    job = run.observed.job(stage, attempt.number)
    if job is None:
        return _without_job(run, attempt)
    if _is_done(run, job):
        return _completed(run, job)
    if job.state is JobState.FAILED and not run.observed.active_pod:
        failure = failure_of(job, run.observed.report, stages.noted_cause(run.status, job))
        failure = worded(failure, as_written(failure.message, run.finetune), stage)
        finished = stages.finish(run.status, job, StageState.FAILED, failure.message)
        run = replace(run, status=finished)
        if findings := findings_of(job, run.observed.report):
            run = results.measured(run, findings)
        return _after_failure(run, attempt, failure)
    step = _running(run, job)
    return _exceeded(replace(run, status=step.status), stage) or step


def _is_done(run: Run, job: Job) -> bool:
    """True for a complete Job, and for one whose first pod had published before another one of its gang failed."""
    return job.state is JobState.COMPLETE or (job.state is JobState.FAILED and _has_published(run, job))


def _has_published(run: Run, job: Job) -> bool:
    result = result_of(job, run.observed.report)
    return result is not None and result.artifact is not None


def _quicker(run: Run, job: Job | None) -> Step | None:
    """What an attempt came to that is to be stopped, and was quicker; also where its pods are only about to end."""
    if job is None or not (_is_done(run, job) or _has_published(run, job)):
        return None
    step = results.of_complete(run, replace(job, finished_at=job.finished_at or run.now))
    lingers = job.state is JobState.RUNNING and not job.is_leaving
    return replace(step, stop=(job,)) if step and lingers else step


def _without_job(run: Run, attempt: Attempt) -> Step:
    """Start an attempt that was not started yet; one whose Job somebody deleted is judged by what is known of it."""
    current = stages.find(run.status, attempt.stage)
    if current is None or current.state is StageState.PENDING or run.observed.active_pod:
        return _start(run, attempt)
    if current.state is StageState.FAILED and run.status.failure:
        return _after_failure(run, attempt, run.status.failure)
    failure = vanished(attempt.stage, attempt.number)
    # Nobody may have looked for hours.
    seen_at = guards.last_seen(run, current) or run.now
    ended = stages.stop(run.status, attempt.stage, failure.message, seen_at, state=StageState.FAILED)
    return _after_failure(replace(run, status=ended), attempt, failure)


def _start(run: Run, attempt: Attempt) -> Step:
    """Create the attempt's Job, unless a pod of an earlier one is still there: never two gangs at once."""
    leftover = run.observed.active_pod
    if leftover:
        return steps.waiting(run, Reason.WAITING_FOR_PODS, f"waiting for pod {leftover} to be gone", LEAVING_CHECK)
    if (exceeded := _exceeded(run, attempt.stage)) is not None:
        return exceeded
    status = run.status
    if not stages.is_asked_for(status, attempt.stage, attempt.number):
        status = _fresh(cost.closed(run), attempt, run.settings.trainer_image, run.now)
    reason, message = stages.starting(status, attempt.stage, attempt.number)
    return Step(status, Verdict.WORKING, reason, message, start=attempt)


def _fresh(status: FinetuneStatus, attempt: Attempt, image: str, now: datetime) -> FinetuneStatus:
    """The status at the start of an attempt: of training, what the newest checkpoint keeps of the earlier ones."""
    status = stages.put(status, attempt.stage, StageState.PENDING, attempt=attempt.number, waiting_since=now)
    resolved = (status.resolved or Resolved()).model_copy(update={"trainer_image": image})
    limit_held = status.failure and POLICIES[status.failure.failure_class].next is Next.HOLD
    failure = None if limit_held else status.failure  # A limit that was raised is wrong no more.
    status = status.model_copy(update={"retry_at": None, "resolved": resolved, "failure": failure})
    if attempt.stage is not Stage.TRAIN:
        return status
    kept = [condition for condition in status.conditions if condition.type is not ConditionType.TRAINED]
    return back_to_checkpoint(status.model_copy(update={"attempts": attempt.number, "conditions": kept}))


def _stopped(run: Run, attempt: Attempt) -> Step:
    """A stopped attempt, until its Job and pods are gone; then the next one, unless a limit still holds the run."""
    job = run.observed.job(attempt.stage, attempt.number)
    if (step := _quicker(run, job)) is not None:
        return step
    leaving, held = _leaving(run, Reason.STOPPING, (job,) if job else ()), _still_held(run, attempt.stage)
    if held is not None:
        return replace(held, stop=leaving.stop, check_again=leaving.check_again) if leaving else held
    if leaving is None and (cause := guards.cause_of_stop(run.status, attempt.stage)):
        return _after_failure(run, attempt, cause)
    return leaving or _start(run, Attempt(attempt.stage, attempt.number + 1))


def _leaving(run: Run, reason: Reason, jobs: tuple[Job, ...]) -> Step | None:
    """Waiting until these Jobs and all pods are gone; None once they are."""
    lingering = run.now - LINGERING
    there = [job.name for job in jobs if job.deleted_at is None or job.deleted_at > lingering]
    leftover = there[0] if there else run.observed.active_pod
    if leftover is None:
        return None
    step = steps.waiting(run, reason, f"waiting for {leftover} to be gone", LEAVING_CHECK)
    return replace(step, stop=tuple(job for job in jobs if not job.is_leaving))


def _suspended(run: Run) -> Step:
    """Its user wants it to pause: a running attempt is stopped, one that has ended is judged as ever."""
    current, job = stages.find(run.status, Stage.TRAIN), _newest_training(run)
    if (step := _quicker(run, job)) is not None:
        return step
    if job and job.state is not JobState.RUNNING:
        step = _stage(run, Stage.TRAIN)
        if step.verdict is not Verdict.WORKING:
            return step
    if current and (job or current.state is StageState.RUNNING):
        run = replace(run, status=stages.stop(run.status, Stage.TRAIN, "suspended", run.now))
    if (leaving := _leaving(run, Reason.SUSPENDING, (job,) if job else ())) is not None:
        return leaving
    message = "spec.suspend is true; training goes on when it is false"
    status = stages.not_asked_for(run.status, Stage.TRAIN).model_copy(update={"retry_at": None})
    return Step(status, Verdict.PAUSED, Reason.SUSPENDED, message)


def _cancelled(run: Run) -> Step:
    """Its user wants it to end. An artifact that is published already stays what the run came to."""
    if (step := _quicker(run, _newest_training(run))) is not None:
        return step
    for stage in Stage:
        if (entry := stages.find(run.status, stage)) and entry.state in (StageState.PENDING, StageState.RUNNING):
            run = replace(run, status=stages.stop(run.status, stage, "cancelled", run.now))
    running = tuple(job for job in run.observed.jobs if job.state is JobState.RUNNING)
    message = f"spec.cancel is true; what lies in S3 stays; {_what_is_published(run)}"
    status = run.status.model_copy(update={"retry_at": None})
    return _leaving(run, Reason.CANCELLING, running) or Step(status, Verdict.CANCELLED, Reason.CANCELLED, message)


def _what_is_published(run: Run) -> str:
    if not is_true(run.status, ConditionType.TRAINED):
        return "nothing is published"
    root = run_root(run.finetune).output_uri
    return f"it was publishing, and was in time if there is a manifest.json in {root}"


def _exceeded(run: Run, stage: Stage) -> Step | None:
    """The attempt given up since a limit is reached; None while there is time left."""
    breach = limits.breach(run, stage)
    if breach is None:
        return None
    entry = stages.find(run.status, stage)
    cause = breach.failure if breach.counts else None
    status = stages.stop(run.status, stage, breach.failure.message, run.now, breach.waited_seconds, cause=cause)
    run = replace(run, status=status.model_copy(update={"failure": breach.failure}))
    return _stopped(run, Attempt(stage, entry.attempt)) if entry else steps.held(run, breach.failure)


def _still_held(run: Run, stage: Stage) -> Step | None:
    """The limit that stopped the run, as long as nobody has raised it."""
    failure = limits.still_holding(run, stage)
    return steps.held(run, failure) if failure else None


def _running(run: Run, job: Job) -> Step:
    generation = run.finetune.metadata.generation
    seen = stages.observe(run.status, job, generation, run.now)
    interval = timedelta(seconds=run.settings.status_interval_seconds)
    status, check_again = merge_report(
        seen, run.observed.report, job, interval=interval, generation=generation, now=run.now
    )
    if not job.has_started:
        check_again = START_CHECK  # Events that say why come to the Job and the pod, and are not watched.
    elif job.stage is Stage.TRAIN:
        status = guards.watched(replace(run, status=status))
        left = limits.time_left(replace(run, status=status))
        check_again = min(check_again or left, left)
    is_queued = job.is_suspended and not any(pod.is_active for pod in job.pods)
    reason = Reason.WAITING_FOR_QUEUE if is_queued else stages.WORD[job.stage]
    return Step(status, Verdict.WORKING, reason, stages.sentence(status, job), check_again=check_again)


def _completed(run: Run, job: Job) -> Step:
    """A complete Job whose result nobody can tell, not even S3, is as good as one that has failed."""
    if (step := results.of_complete(run, job)) is not None:
        return step
    known = run.status.failure if stages.has_failed(run.status, job) else None
    *_, in_the_way = stages.being_read(run.status, job, run.now)
    failure = known or lost_result(job, run.observed.reading_of(job), in_the_way)
    finished = stages.finish(run.status, job, StageState.FAILED, failure.message)
    return _after_failure(replace(run, status=finished), Attempt(job.stage, job.attempt), failure)


def _after_failure(run: Run, attempt: Attempt, failure: Failure) -> Step:
    """The table: fail for good, hold, try again after a wait, or start again at once, smaller where memory ended."""
    following = POLICIES[failure.failure_class].next
    if following is Next.FAIL:
        return steps.failed(run, failure)
    if following is Next.SMALLER:
        return _smaller(run, attempt, failure)
    in_a_row = run.status.restarts_in_a_row + 1
    if following is Next.RESTART and in_a_row < RESTARTS_THAT_COUNT:
        counted = {"restarts": run.status.restarts + 1, "restarts_in_a_row": in_a_row}
        run = replace(run, status=run.status.model_copy(update=counted))
        return _start(run, Attempt(attempt.stage, attempt.number + 1))
    if run.status.retries >= run.finetune.spec.retry_limit:
        return retries.used_up(run, failure)
    return retries.next_try(run, attempt, failure, restarted=following is Next.RESTART)


def _smaller(run: Run, attempt: Attempt, failure: Failure) -> Step:
    """The next rung of the memory ladder. It has none for prepare, whose memory does not depend on micro-batches."""
    rung = run.status.memory_rung
    if attempt.stage is Stage.PREPARE or rung >= POLICIES[failure.failure_class].last_rung:
        return steps.failed(run, failure)
    status = run.status.model_copy(update={"memory_rung": rung + 1, "failure": failure})
    return _start(replace(run, status=status), Attempt(attempt.stage, attempt.number + 1))
