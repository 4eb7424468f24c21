"""The stages in the status: what each is doing, told in words; what each came to. Pure."""

from collections.abc import Iterator
from datetime import datetime

from finetune_api.names import STATUS_MESSAGE_LENGTH, ConditionType, Stage, StageState
from finetune_api.progress import Progress
from finetune_api.reasons import Reason
from finetune_api.run import RunResult
from finetune_api.states import FALSE, TRUE
from finetune_api.status import ConditionStatus, Failure, FinetuneStatus, StageStatus
from finetune_api.words import one_line, shortened

from finetune_operator.attempts import cause_of
from finetune_operator.conditions import set_condition
from finetune_operator.observed import Job, Pod

WORD = {Stage.PREPARE: Reason.PREPARING, Stage.TRAIN: Reason.TRAINING}
"""Reason of a run that is at this stage."""


def find(status: FinetuneStatus, stage: Stage) -> StageStatus | None:
    """The stage's entry, once it was started."""
    return next((entry for entry in status.stages if entry.name is stage), None)


def put(
    status: FinetuneStatus,
    stage: Stage,
    state: StageState,
    *,
    attempt: int,
    message: str | None = None,
    waiting_since: datetime | None = None,
) -> FinetuneStatus:
    """The status with a fresh entry for the stage, at the start of an attempt."""
    entry = StageStatus(name=stage, state=state, attempt=attempt, message=_cut(message), waiting_since=waiting_since)
    return replace(status, entry)


def is_asked_for(status: FinetuneStatus, stage: Stage, attempt: int) -> bool:
    """True when this very attempt is about to start, and waits to; one that waits for its retry is not."""
    entry = find(status, stage)
    is_pending = entry is not None and (entry.state, entry.attempt) == (StageState.PENDING, attempt)
    return is_pending and _since(entry, attempt) is not None


def not_asked_for(status: FinetuneStatus, stage: Stage) -> FinetuneStatus:
    """The status with an attempt that is about to start begun anew when it may: until then it waits for nothing."""
    entry = find(status, stage)
    if entry is None or entry.state is not StageState.PENDING:
        return status
    return put(status, stage, StageState.PENDING, attempt=entry.attempt)


def starting(status: FinetuneStatus, stage: Stage, attempt: int) -> tuple[Reason, str]:
    """Reason and message while an attempt is being started: what stood in the way so far, if anything did.

    Without that it is told as one that waits for its pod: it soon does, and the status need not be written twice.
    """
    entry = find(status, stage)
    return Reason.REFUSED if entry and entry.message else WORD[stage], _sentence(entry, stage, attempt)


def observe(status: FinetuneStatus, job: Job, generation: int, now: datetime) -> FinetuneStatus:
    """The status with what the attempt's pod is doing, and whether it has a node."""
    pod, previous = job.slowest_pod, find(status, job.stage)
    was_running = previous is not None and previous.state is StageState.RUNNING
    ran_since = previous.started_at if previous and was_running and previous.attempt == job.attempt else None
    started = job.started_at or (ran_since if _is_breaking_up(job) else None)
    asked_since = _since(previous, job.attempt)
    if ran_since and not started:
        # A queue has taken its pods back; the Job goes on, and waits anew, when it is admitted again.
        status, asked_since = _with_active(status, job.stage, ran_since, now), None
    entry = StageStatus(
        name=job.stage,
        state=StageState.RUNNING if started else StageState.PENDING,
        attempt=job.attempt,
        started_at=started,
        gathered_seconds=previous.gathered_seconds if previous and previous.attempt == job.attempt else 0,
        waiting_since=None if job.is_suspended else asked_since or now,
        cause=None if job.is_suspended else cause_of(job, noted=noted_cause(status, job)),
        message=_cut(previous.message if previous and started and was_running else _waiting_for(pod, job)),
    )
    return _with_scheduled(replace(status, entry), pod, generation, now)


def _since(entry: StageStatus | None, attempt: int) -> datetime | None:
    """Since when this very attempt has been waiting, where an earlier pass has noted it."""
    return entry.waiting_since if entry and entry.attempt == attempt else None


def _is_breaking_up(job: Job) -> bool:
    """True while an attempt that has run loses its pods, one after another; a queue would take them all at once."""
    return job.is_failing or (not job.is_suspended and (not job.pods or any(pod.started_at for pod in job.pods)))


def being_read(status: FinetuneStatus, job: Job, now: datetime) -> tuple[FinetuneStatus, datetime, str | None]:
    """The status while another Job is to read what this one came to, since when, and what stands in the way of that."""
    entry = find(status, job.stage)
    if entry is None or entry.attempt != job.attempt:
        return status, now, None
    if entry.reading_since:
        return status, entry.reading_since, entry.message
    # What its pods did is no news any more.
    return replace(status, entry.model_copy(update={"reading_since": now, "message": None})), now, None


def in_the_way(status: FinetuneStatus, stage: Stage, message: str | None) -> FinetuneStatus:
    """The status with what keeps the newest attempt of the stage from coming further; None = nothing any more."""
    entry = find(status, stage)
    return replace(status, entry.model_copy(update={"message": _cut(message)})) if entry else status


def noted_cause(status: FinetuneStatus, job: Job) -> Failure | None:
    """What an earlier pass saw a pod of this attempt die of."""
    entry = find(status, job.stage)
    return entry.cause if entry and entry.attempt == job.attempt else None


def has_failed(status: FinetuneStatus, job: Job) -> bool:
    """True where an earlier pass has found that this attempt failed."""
    entry = find(status, job.stage)
    return entry is not None and (entry.state, entry.attempt) == (StageState.FAILED, job.attempt)


def finish(status: FinetuneStatus, job: Job, state: StageState, message: str | None) -> FinetuneStatus:
    """The status with the attempt ended."""
    previous = find(status, job.stage)
    current = previous if previous and previous.attempt == job.attempt else None
    # Of a gang that has failed, some pods are gone.
    started = job.started_at or (current.started_at if current else None)
    if job.finished_at and not (current and _has_ended(current, job.attempt)):
        status = _with_active(status, job.stage, started, job.finished_at)
    entry = StageStatus(
        name=job.stage,
        state=state,
        attempt=job.attempt,
        started_at=started,
        finished_at=job.finished_at,
        gathered_seconds=current.gathered_seconds if current else 0,
        cause=current.cause if current else None,
        message=_cut(message),
    )
    return replace(status, entry)


def stop(
    status: FinetuneStatus,
    stage: Stage,
    message: str,
    now: datetime,
    waited_seconds: int | None = None,
    state: StageState = StageState.STOPPED,
    cause: Failure | None = None,
) -> FinetuneStatus:
    """The status with the newest attempt of the stage ended now: its Job goes, or is gone; the next attempt goes on.

    `cause`: why it is given up, where that is a failure of its own.
    """
    entry = find(status, stage)
    if entry is None or entry.state is state:
        return status
    has_ended = _has_ended(entry, entry.attempt)
    changes = {
        "state": state,
        "finished_at": entry.finished_at if has_ended else now,
        "message": _cut(message),
        "waited_seconds": waited_seconds,
        "cause": cause or entry.cause,
    }
    if not has_ended:
        status = _with_active(status, stage, entry.started_at, now)
    return replace(status, entry.model_copy(update=changes))


def active_seconds(status: FinetuneStatus, now: datetime) -> int:
    """How long train pods have run until now, all attempts together."""
    entry = find(status, Stage.TRAIN)
    if entry is None or entry.state is not StageState.RUNNING or entry.started_at is None:
        return status.active_seconds
    return status.active_seconds + _seconds_between(entry.started_at, now)


def _has_ended(entry: StageStatus, attempt: int) -> bool:
    over = (StageState.SUCCEEDED, StageState.FAILED, StageState.STOPPED)
    return entry.attempt == attempt and entry.state in over


def _with_active(status: FinetuneStatus, stage: Stage, since: datetime | None, until: datetime) -> FinetuneStatus:
    """The status with the time of one train pod added; prepare's costs no GPU and counts in no deadline."""
    if stage is not Stage.TRAIN or since is None:
        return status
    return status.model_copy(update={"active_seconds": status.active_seconds + _seconds_between(since, until)})


def _seconds_between(since: datetime, until: datetime) -> int:
    """Never negative: the clocks of two machines may differ."""
    return max(0, int((until - since).total_seconds()))


def sentence(status: FinetuneStatus, job: Job) -> str:
    """What the run is doing, for the message of its conditions."""
    return _sentence(find(status, job.stage), job.stage, job.attempt)


def _sentence(entry: StageStatus | None, stage: Stage, attempt: int) -> str:
    is_running = entry is not None and entry.state is StageState.RUNNING
    words = f"{stage}, attempt {attempt}, is {'running' if is_running else 'waiting to start'}"
    return f"{words}: {entry.message}" if entry and entry.message else words


def outcomes(result: RunResult) -> Iterator[tuple[ConditionType, ConditionStatus, str, str]]:
    """Condition, status, reason and message of each thing that a train stage brings about."""
    yield ConditionType.TRAINED, TRUE, *how_trained(result.progress)
    if is_measured(result):
        yield ConditionType.EVALUATED, TRUE, Reason.COMPARED, "base and tuned model were measured on the same rows"
    else:
        yield (
            ConditionType.EVALUATED,
            FALSE,
            Reason.NO_EVALUATION_ROWS,
            "there are neither dev nor test rows, or no metric is asked for",
        )
    if result.artifact:
        message = f"{result.artifact.files} files, {result.artifact.bytes} bytes"
        yield ConditionType.ARTIFACT_PUBLISHED, TRUE, Reason.MANIFEST_WRITTEN, message
    elif result.failure:
        message = _cut(result.failure.message) or ""
        yield ConditionType.ARTIFACT_PUBLISHED, FALSE, result.failure.reason, message


def how_trained(progress: Progress | None) -> tuple[Reason, str]:
    """Reason and message of a training that is over: early stopping ends one before its last step."""
    steps, wanted = (progress.step, progress.total_steps) if progress else (0, 0)
    if steps < wanted:
        words = "the dev loss has stopped falling (hyperparameters.earlyStopping)"
        return Reason.STOPPED_EARLY, f"{steps} of {wanted} optimizer steps are done: {words}"
    return Reason.STEPS_DONE, f"{steps} optimizer steps are done"


def is_measured(result: RunResult) -> bool:
    """True when base and tuned model were compared by at least one metric."""
    return result.evaluation is not None and bool(result.evaluation.measured())


def final_progress(status: FinetuneStatus, result: RunResult) -> Progress | None:
    """The last word on progress; the time of the last report stays."""
    if result.progress is None:
        return status.progress
    return result.progress.model_copy(update={"updated_at": status.progress.updated_at if status.progress else None})


def _waiting_for(pod: Pod | None, job: Job) -> str | None:
    """Why nothing has started. An Event says more than the kubelet's `ContainerCreating`."""
    if job.is_suspended and pod is None:
        words = f"Job {job.name} is suspended: its queue, or whoever suspended it, has yet to admit it"
        return f"{words}; {job.trouble}" if job.trouble else words
    if pod and pod.says_why:
        return pod.waiting
    return job.trouble or (pod.waiting if pod else None)


def _with_scheduled(status: FinetuneStatus, pod: Pod | None, generation: int, now: datetime) -> FinetuneStatus:
    if pod is None or pod.scheduled is None:
        return status
    value, reason = (TRUE, Reason.POD_SCHEDULED) if pod.scheduled else (FALSE, Reason.UNSCHEDULABLE)
    message = _cut(f"pod {pod.name} has a node" if pod.scheduled else pod.waiting) or ""
    conditions = set_condition(
        status.conditions, ConditionType.SCHEDULED, value, reason, message, generation=generation, now=now
    )
    return status.model_copy(update={"conditions": conditions})


def replace(status: FinetuneStatus, entry: StageStatus) -> FinetuneStatus:
    """The status with this entry in place of the stage's old one."""
    others = [stage for stage in status.stages if stage.name is not entry.name]
    ordered = sorted([*others, entry], key=lambda stage: list(Stage).index(stage.name))
    return status.model_copy(update={"stages": ordered})


def _cut(message: str | None) -> str | None:
    return shortened(one_line(message or ""), STATUS_MESSAGE_LENGTH) or None
