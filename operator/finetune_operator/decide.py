"""What to do next: a pure function of the Finetune, what was observed of its children, the settings and the clock.

It never raises, and called again with the status it returned it changes nothing. A terminal Finetune never gets
another Job, whatever happened to its children.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum

from finetune_api.failures import POLICIES, Next
from finetune_api.names import STATUS_MESSAGE_LENGTH, ConditionType, FailureClass, Stage, StageState
from finetune_api.resource import Finetune
from finetune_api.run import RunResult
from finetune_api.status import Condition, ConditionStatus, Failure, FinetuneStatus, Resolved

from finetune_operator import stages
from finetune_operator.attempts import a_failure, failure_of, findings_of, lost_result, result_of, vanished
from finetune_operator.conditions import FALSE, TRUE, UNKNOWN, is_true, phase_of, set_condition
from finetune_operator.observed import Job, JobState, Observed
from finetune_operator.progress import merge_report
from finetune_operator.settings import Settings

BASE_MODEL_GRACE = timedelta(seconds=60)
"""How long `finetuneRef` may name nothing: a GitOps tool applies the two in any order."""

START_CHECK = timedelta(seconds=10)
"""How often a Job whose pod has not started is looked at."""

RESTARTS_THAT_COUNT = 5
"""Every fifth preemption counts as an infrastructure failure, so that a run cannot be preempted for ever."""


class Verdict(Enum):
    """How the run stands after a pass."""

    WORKING = "working"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The run itself is wrong: for good."""
    HELD = "held"
    """A person can cure it without changing the run; it goes on when they do."""


@dataclass(frozen=True)
class Attempt:
    """A Job to create."""

    stage: Stage
    number: int


@dataclass(frozen=True)
class Step:
    """One step of the story: the status so far, and what it comes to."""

    status: FinetuneStatus
    verdict: Verdict
    reason: str
    message: str
    start: Attempt | None = None
    check_again: timedelta | None = None


@dataclass(frozen=True)
class Decision:
    """What a pass writes, then does."""

    status: FinetuneStatus
    start: Attempt | None = None
    """A Job to create once the status is written."""
    check_again: timedelta | None = None
    """When to look again although nothing happened."""


@dataclass(frozen=True)
class Run:
    """The arguments of `decide`, with the status as it grows."""

    finetune: Finetune
    observed: Observed
    settings: Settings
    now: datetime
    status: FinetuneStatus


def decide(finetune: Finetune, observed: Observed, settings: Settings, now: datetime) -> Decision:
    """The next status, and the Job to create, if any."""
    if is_over(finetune.status) or finetune.metadata.deletion_timestamp:
        seen = finetune.status.model_copy(update={"observed_generation": finetune.metadata.generation})
        return Decision(seen if is_over(finetune.status) else finetune.status)
    step = _story(Run(finetune, observed, settings, now, finetune.status))
    return Decision(_concluded(step, finetune.metadata.generation, now), step.start, step.check_again)


def refused(finetune: Finetune, attempt: Attempt, message: str, *, for_good: bool, now: datetime) -> FinetuneStatus:
    """The status after the API server refused an attempt's objects: waiting with its words, or failed for good."""
    status = stages.put(finetune.status, attempt.stage, StageState.PENDING, attempt=attempt.number, message=message)
    step = Step(status, Verdict.WORKING, *stages.starting(status, attempt.stage, attempt.number))
    if for_good:
        failure = a_failure(FailureClass.INVALID_CONFIG, "JobInvalid", message)
        step = Step(status.model_copy(update={"failure": failure}), Verdict.FAILED, failure.reason, message)
    return _concluded(step, finetune.metadata.generation, now)


def is_over(status: FinetuneStatus) -> bool:
    """True when nothing more can happen: succeeded, or failed for good."""
    held = is_true(status, ConditionType.SUSPENDED)
    return is_true(status, ConditionType.SUCCEEDED) or (is_true(status, ConditionType.STALLED) and not held)


def _story(run: Run) -> Step:
    """Base model, then prepare, then train; each step is gone through again in every pass."""
    if (step := _base_model(run)) is not None:
        return step
    run = replace(run, status=_with_model_uri(run))
    if not is_true(run.status, ConditionType.DATA_VALIDATED):
        step = _stage(run, Stage.PREPARE)
        if not is_true(step.status, ConditionType.DATA_VALIDATED):
            return step
        run = replace(run, status=step.status)
    return _stage(run, Stage.TRAIN)


def _base_model(run: Run) -> Step | None:
    """Waiting for, or failing with, the Finetune this one builds on; None when there is nothing to wait for."""
    ref = run.finetune.spec.model.finetune_ref
    if ref is None or (run.status.resolved and run.status.resolved.model_uri):
        return None
    base = run.observed.base
    if base is None:
        return _missing_base_model(run, ref.name)
    if base.metadata.uid == run.finetune.metadata.uid:
        return _failed(run, a_failure(FailureClass.INVALID_CONFIG, "BaseModelFailed", "model.finetuneRef names itself"))
    if is_true(base.status, ConditionType.SUCCEEDED) and base.status.artifact:
        return None
    if is_over(base.status):
        message = f"model.finetuneRef: Finetune {ref.name} failed, so there is nothing to start from"
        return _failed(run, a_failure(FailureClass.INVALID_CONFIG, "BaseModelFailed", message))
    return _waiting(run, "WaitingForBaseModel", f"waiting for Finetune {ref.name} to succeed", timedelta(seconds=30))


def _missing_base_model(run: Run, name: str) -> Step:
    created = run.finetune.metadata.creation_timestamp
    if created and run.now - datetime.fromisoformat(created) < BASE_MODEL_GRACE:
        return _waiting(run, "WaitingForBaseModel", f"waiting for Finetune {name} to be created", timedelta(seconds=10))
    message = f"model.finetuneRef: there is no Finetune {name} in namespace {run.finetune.metadata.namespace}"
    return _failed(run, a_failure(FailureClass.INVALID_CONFIG, "BaseModelNotFound", message))


def _with_model_uri(run: Run) -> FinetuneStatus:
    """The status with the model's URI resolved, once and for every attempt."""
    resolved = run.status.resolved or Resolved()
    if resolved.model_uri:
        return run.status
    base = run.observed.base
    uri = run.finetune.spec.model.uri or (base.status.artifact.uri if base and base.status.artifact else None)
    return run.status.model_copy(update={"resolved": resolved.model_copy(update={"model_uri": uri})})


def _stage(run: Run, stage: Stage) -> Step:
    """Where one stage is: to be started, waiting for its retry, running, done or failed."""
    current = stages.find(run.status, stage)
    attempt = Attempt(stage, current.attempt if current else 1)
    if run.status.retry_at and run.now < run.status.retry_at:
        return _waiting(run, "WaitingToRetry", _retry_message(run), run.status.retry_at - run.now)
    job = run.observed.job(stage, attempt.number)
    if job is None:
        return _without_job(run, attempt)
    if job.state is JobState.COMPLETE:
        return _completed(run, job)
    if job.state is JobState.FAILED and not _active_pod(run):
        failure = failure_of(job, run.observed.report, stages.noted_disruption(run.status, job))
        finished = stages.finish(run.status, job, StageState.FAILED, failure.message)
        run = replace(run, status=finished)
        if findings := findings_of(job, run.observed.report):
            run = _measured(run, findings)
        return _after_failure(run, attempt, failure)
    return _running(run, job)


def _without_job(run: Run, attempt: Attempt) -> Step:
    """Start an attempt that was not started yet; one whose Job somebody deleted is judged by what is known of it."""
    current = stages.find(run.status, attempt.stage)
    if current is None or current.state is StageState.PENDING or _active_pod(run):
        return _start(run, attempt)
    if current.state is StageState.FAILED and run.status.failure:
        return _after_failure(run, attempt, run.status.failure)
    return _after_failure(run, attempt, vanished(attempt.stage, attempt.number))


def _start(run: Run, attempt: Attempt) -> Step:
    """Create the attempt's Job, unless a pod of an earlier one is still there: never two gangs at once."""
    leftover = _active_pod(run)
    if leftover:
        return _waiting(run, "WaitingForPods", f"waiting for pod {leftover} to be gone", timedelta(seconds=5))
    status = run.status
    if status.retry_at or not stages.is_pending(status, attempt.stage, attempt.number):
        status = _fresh(status, attempt, run.settings.trainer_image)
    reason, message = stages.starting(status, attempt.stage, attempt.number)
    return Step(status, Verdict.WORKING, reason, message, start=attempt)


def _fresh(status: FinetuneStatus, attempt: Attempt, image: str) -> FinetuneStatus:
    """The status at the start of an attempt; training begins at step 0, so what an earlier one had reached goes."""
    status = stages.put(status, attempt.stage, StageState.PENDING, attempt=attempt.number)
    resolved = (status.resolved or Resolved()).model_copy(update={"trainer_image": image})
    status = status.model_copy(update={"retry_at": None, "resolved": resolved})
    if attempt.stage is not Stage.TRAIN:
        return status
    kept = [condition for condition in status.conditions if condition.type is not ConditionType.TRAINED]
    reached: dict[str, object] = {"progress": None, "metrics": None, "history": []}
    return status.model_copy(update={"attempts": attempt.number, "conditions": kept, **reached})


def _active_pod(run: Run) -> str | None:
    """Name of a pod of any attempt that still holds, or may yet take, its resources; its Job may be gone already."""
    pods = [*run.observed.orphans, *(pod for job in run.observed.jobs for pod in job.pods)]
    return next((pod.name for pod in pods if pod.is_active), None)


def _running(run: Run, job: Job) -> Step:
    generation = run.finetune.metadata.generation
    seen = stages.observe(run.status, job, generation, run.now)
    interval = timedelta(seconds=run.settings.status_interval_seconds)
    status, check_again = merge_report(seen, run.observed.report, job, interval=interval, generation=generation)
    if not job.has_started:
        check_again = START_CHECK  # Events that say why come to the Job and the pod, and are not watched.
    message = stages.sentence(status, job)
    return Step(status, Verdict.WORKING, stages.WORD[job.stage], message, check_again=check_again)


def _completed(run: Run, job: Job) -> Step:
    result = result_of(job, run.observed.report)
    if result is None or (job.stage is Stage.TRAIN and result.artifact is None):
        failure = lost_result(job)
        finished = stages.finish(run.status, job, StageState.FAILED, failure.message)
        return _after_failure(replace(run, status=finished), Attempt(job.stage, job.attempt), failure)
    generation = run.finetune.metadata.generation
    merged, _ = merge_report(run.status, run.observed.report, job, interval=timedelta(0), generation=generation)
    status = stages.finish(merged, job, StageState.SUCCEEDED, None)
    run = replace(run, status=status.model_copy(update={"failure": None}))
    return _prepared(run, result) if job.stage is Stage.PREPARE else _trained(run, result)


def _prepared(run: Run, result: RunResult) -> Step:
    resolved = (run.status.resolved or Resolved()).model_copy(
        update=result.resolved.model_dump(exclude_none=True) if result.resolved else {}
    )
    rows = result.data.rows if result.data else None
    message = f"{rows.train} train, {rows.dev} dev and {rows.test} test rows are ready" if rows else "the data is ready"
    status = run.status.model_copy(
        update={
            "data": result.data,
            "effective_hyperparameters": result.effective_hyperparameters,
            "resolved": resolved,
            "conditions": _set(run, ConditionType.DATA_VALIDATED, TRUE, "RowsReady", message),
        }
    )
    return Step(status, Verdict.WORKING, "Preparing", message)


def _trained(run: Run, result: RunResult) -> Step:
    status = _measured(run, result).status
    uri = result.artifact.uri if result.artifact else ""
    return Step(status, Verdict.SUCCEEDED, "Succeeded", f"the artifact is published at {uri}")


def _measured(run: Run, result: RunResult) -> Run:
    """The run with what its train stage brought about, whether that was published or did not pass the gate."""
    for kind, value, reason, message in stages.outcomes(result):
        run = replace(run, status=run.status.model_copy(update={"conditions": _set(run, kind, value, reason, message)}))
    found: dict[str, object] = {
        "plan": result.plan or run.status.plan,
        "evaluation": result.evaluation,
        "artifact": result.artifact,
        "progress": stages.final_progress(run.status, result),
        "metrics": result.metrics or run.status.metrics,
    }
    return replace(run, status=run.status.model_copy(update=found))


def _after_failure(run: Run, attempt: Attempt, failure: Failure) -> Step:
    """The table: fail for good, hold, try again after a wait, or start again at once, smaller where memory ended."""
    following = POLICIES[failure.failure_class].next
    if following is Next.FAIL:
        return _failed(run, failure)
    if following is Next.SMALLER:
        return _smaller(run, attempt, failure)
    if following is Next.RESTART and (run.status.restarts + 1) % RESTARTS_THAT_COUNT:
        again = run.status.model_copy(update={"restarts": run.status.restarts + 1})
        return _start(replace(run, status=again), Attempt(attempt.stage, attempt.number + 1))
    if run.status.retries >= run.finetune.spec.retry_limit:
        return _held(run, failure)
    return _retry(run, attempt, failure, restarted=following is Next.RESTART)


def _smaller(run: Run, attempt: Attempt, failure: Failure) -> Step:
    """The next rung of the memory ladder. It has none for prepare, whose memory does not depend on micro-batches."""
    rung = run.status.memory_rung
    if attempt.stage is Stage.PREPARE or rung >= POLICIES[failure.failure_class].last_rung:
        return _failed(run, failure)
    status = run.status.model_copy(update={"memory_rung": rung + 1, "failure": failure})
    return _start(replace(run, status=status), Attempt(attempt.stage, attempt.number + 1))


def _retry(run: Run, attempt: Attempt, failure: Failure, *, restarted: bool) -> Step:
    settings, number = run.settings, attempt.number + 1
    seconds = min(settings.retry_wait_seconds * 2.0 ** min(run.status.retries, 30), settings.retry_wait_limit_seconds)
    wait = timedelta(seconds=seconds)
    status = stages.put(run.status, attempt.stage, StageState.PENDING, attempt=number, message=failure.message)
    changes: dict[str, object] = {
        "failure": failure,
        "retries": run.status.retries + 1,
        "restarts": run.status.restarts + restarted,
        "retry_at": (run.now + wait).replace(microsecond=0),
    }
    run = replace(run, status=status.model_copy(update=changes))
    return _waiting(run, "WaitingToRetry", _retry_message(run), wait)


def _retry_message(run: Run) -> str:
    failure, limit = run.status.failure, run.finetune.spec.retry_limit
    why = f"{failure.reason}: {failure.message}" if failure else "the last attempt failed"
    return f"retry {run.status.retries} of {limit} starts at {run.status.retry_at:%H:%M:%S} UTC; {why}"


def _waiting(run: Run, reason: str, message: str, check_again: timedelta) -> Step:
    return Step(run.status, Verdict.WORKING, reason, message, check_again=max(check_again, timedelta(seconds=1)))


def _held(run: Run, failure: Failure) -> Step:
    limit = run.finetune.spec.retry_limit
    message = f"spec.retryLimit {limit} is reached; raise it to go on; {failure.reason}: {failure.message}"
    return Step(run.status.model_copy(update={"failure": failure}), Verdict.HELD, "RetriesExhausted", message)


def _failed(run: Run, failure: Failure) -> Step:
    status = run.status.model_copy(update={"failure": failure})
    if failure.failure_class is FailureClass.INVALID_DATA:
        changed = _set(run, ConditionType.DATA_VALIDATED, FALSE, failure.reason, failure.message)
        status = status.model_copy(update={"conditions": changed})
    return Step(status, Verdict.FAILED, failure.reason, failure.message)


def _set(run: Run, kind: ConditionType, value: ConditionStatus, reason: str, message: str) -> list[Condition]:
    generation = run.finetune.metadata.generation
    return set_condition(run.status.conditions, kind, value, reason, message, generation=generation, now=run.now)


VERDICT_CONDITIONS = {
    Verdict.WORKING: (FALSE, TRUE, FALSE, UNKNOWN, FALSE),
    Verdict.SUCCEEDED: (TRUE, FALSE, FALSE, TRUE, FALSE),
    Verdict.FAILED: (FALSE, FALSE, TRUE, FALSE, FALSE),
    Verdict.HELD: (FALSE, FALSE, TRUE, UNKNOWN, TRUE),
}
"""Ready, Reconciling, Stalled, Succeeded and Suspended for each verdict, as kstatus and Argo CD read them."""

VERDICT_TYPES = (
    ConditionType.READY,
    ConditionType.RECONCILING,
    ConditionType.STALLED,
    ConditionType.SUCCEEDED,
    ConditionType.SUSPENDED,
)


def _concluded(step: Step, generation: int, now: datetime) -> FinetuneStatus:
    conditions = step.status.conditions
    for kind, value in zip(VERDICT_TYPES, VERDICT_CONDITIONS[step.verdict], strict=True):
        conditions = set_condition(
            conditions, kind, value, step.reason, step.message[:STATUS_MESSAGE_LENGTH], generation=generation, now=now
        )
    status = step.status.model_copy(update={"conditions": conditions, "observed_generation": generation})
    return status.model_copy(update={"phase": phase_of(status)})
