"""How an attempt ended: the result of a Job that is complete, the failure of one that is not.

The table of design: what a pod says of itself comes first, then what the cluster did to it, then its exit code.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from finetune_api.failures import PEER_LOST, POLICIES, TERMINATED
from finetune_api.names import Exit, FailureClass, Stage
from finetune_api.reasons import Reason
from finetune_api.run import RunResult
from finetune_api.status import Failure
from finetune_api.words import as_word, one_line, shortened
from pydantic import ValidationError

from finetune_operator.observed import Job, JobState, Pod, Report

CLASS_OF_EXIT_CODE = {
    Exit.USER_ERROR: FailureClass.INVALID_CONFIG,
    Exit.INFRASTRUCTURE: FailureClass.INFRASTRUCTURE,
    Exit.GPU_OUT_OF_MEMORY: FailureClass.GPU_OUT_OF_MEMORY,
    Exit.DIVERGED: FailureClass.DIVERGED,
    Exit.GATE_FAILED: FailureClass.GATE_FAILED,
    Exit.TERMINATED: FailureClass.PREEMPTED,
}
"""The class of an exit code whose message was lost."""

TOLD_TO_STOP = (TERMINATED, Reason.NO_MESSAGE)
"""Reasons of a pod that ended on SIGTERM, whoever sent it."""

MESSAGE_LENGTH = 1024
"""Longest message of a failure in the status."""

PREPARE_REMEDIES = {
    FailureClass.HOST_OUT_OF_MEMORY: "Raise settings.prepare.memory of the chart: prepare has a size of its own.",
    FailureClass.DISK_FULL: "Raise settings.prepare.ephemeralStorage of the chart: prepare has a size of its own.",
}
"""Remedies that differ for prepare, whose pod is not sized by `spec.trainer`."""


READING_SECONDS = 300
"""Longest that reading a lost result from S3 may take, its retries included."""

READING_GRACE = timedelta(seconds=60)
"""How much later its Job is given up, should it not end by itself: a lost node may keep its pod, or a queue the Job."""


def result_of(job: Job, report: Report | None) -> RunResult | None:
    """What a stage found, from the termination message, else from its last report; None when neither is there."""
    for pod in job.first_pods:
        if (result := parse_result(pod.message, job.stage)) and result.failure is None:
            return result
    reported = _reported_result(job, report)
    return reported if reported and reported.failure is None else None


def whole_result(job: Job, report: Report | None) -> RunResult | None:
    """What a stage found, where it says everything that a success has to say: of training, what was published."""
    result = result_of(job, report)
    return None if result and job.stage is Stage.TRAIN and result.artifact is None else result


def findings_of(job: Job, report: Report | None) -> RunResult | None:
    """What a failed attempt had measured before it failed, where it says so."""
    said = [parse_result(pod.message, job.stage) for pod in job.first_pods]
    return next((result for result in [*said, _reported_result(job, report)] if result and result.evaluation), None)


def failure_of(job: Job, report: Report | None, noted: Failure | None = None) -> Failure:
    """Why an attempt failed, judged over all its pods; `noted` is what was seen of one that may be gone."""
    return cause_of(job, report, noted) or _failure_without_pod(job)


def cause_of(job: Job, report: Report | None = None, noted: Failure | None = None) -> Failure | None:
    """The failure that explains the others, of those that the attempt's pods have had so far; None without one."""
    reported = _reported_result(job, report)
    found = [failure for pod in job.pods for failure in _failures_of_pod(pod, job, reported)]
    if not job.first_pods and reported and reported.failure:
        found.append(with_remedy(reported.failure, job.stage))
    return min([*([noted] if noted else []), *found], key=_distance_from_cause, default=None)


def _failures_of_pod(pod: Pod, job: Job, reported: RunResult | None) -> Iterator[Failure]:
    """What a pod says of itself, and what the cluster did to it; its exit code only where it says nothing."""
    said = parse_result(pod.message, job.stage) or (reported if pod.index == 0 else None)
    if said and said.failure:
        yield with_remedy(said.failure, job.stage)
    if pod.disruption:
        message = f"the cluster took pod {pod.name} away"
        taken = Failure(failure_class=FailureClass.PREEMPTED, reason=pod.disruption, message=message)
        yield with_remedy(taken, job.stage)
    elif said is None and (found := _failure_of_pod(pod, job.stage)):
        yield found


def _distance_from_cause(failure: Failure) -> int:
    """How likely a failure only follows from that of another pod, which leaves a gang without a member.

    The class alone decides but for two: a rank that lost its peer, and a pod that was told to stop, as the Job
    controller tells all others once one has failed.
    """
    if failure.failure_class is FailureClass.PREEMPTED:
        return 4 if failure.reason in TOLD_TO_STOP else 1
    if failure.failure_class is FailureClass.INFRASTRUCTURE:
        return 3 if failure.reason == PEER_LOST else 2
    return 0


def last_words(job: Job, report: Report | None) -> RunResult | None:
    """What an attempt said in the end, whether it failed or not; None where it said nothing."""
    said = (parse_result(pod.message, job.stage) for pod in job.first_pods)
    return next((result for result in said if result), _reported_result(job, report))


def may_still_be_read(reading: Job | None, asked_at: datetime, now: datetime) -> bool:
    """True while the Job that reads a lost result may still find it, or, where there is none yet, be made."""
    limit = timedelta(seconds=READING_SECONDS) + READING_GRACE
    if reading is None:
        return now - asked_at <= limit
    return reading.state is JobState.RUNNING and (reading.created_at is None or now - reading.created_at <= limit)


def lost_result(job: Job, reading: Job | None, in_the_way: str | None) -> Failure:
    """A Job that is complete although nobody can say what it found.

    `reading` has looked for it in S3; where there is none, `in_the_way` says why it could not be made.
    """
    said = cause_of(reading) if reading else None
    why = said.message if said else in_the_way if reading is None else None
    message = f"Job {job.name} is complete, but its result is lost"
    message = f"{message}; reading it from S3: {why}" if why else message
    return a_failure(FailureClass.INFRASTRUCTURE, Reason.RESULT_LOST, message, job.stage)


def vanished(stage: Stage, attempt: int) -> Failure:
    """An attempt whose Job was there and is gone: somebody deleted it, and wants it to start again."""
    message = f"the Job of {stage}, attempt {attempt}, was deleted while it ran"
    return a_failure(FailureClass.PREEMPTED, Reason.JOB_DELETED, message, stage)


def a_failure(
    kind: FailureClass, reason: Reason, message: str, stage: Stage = Stage.TRAIN, exit_code: int | None = None
) -> Failure:
    """A failure that nobody but the operator tells of, with the remedy of its class."""
    return with_remedy(Failure(failure_class=kind, reason=reason, message=_fitted(message), exit_code=exit_code), stage)


def worded(failure: Failure, message: str, stage: Stage) -> Failure:
    """The failure told in other words."""
    return with_remedy(failure.model_copy(update={"message": message}), stage)


def with_remedy(failure: Failure, stage: Stage) -> Failure:
    """The failure on one line and as short as the status takes; where it names no remedy, with that of its class."""
    fitted = {"message": _fitted(failure.message), "remedy": _fitted(failure.remedy)}
    failure = failure.model_copy(update=fitted)
    if failure.remedy:
        return failure
    by_stage = PREPARE_REMEDIES if stage is Stage.PREPARE else {}
    remedy = by_stage.get(failure.failure_class, POLICIES[failure.failure_class].remedy)
    return failure.model_copy(update={"remedy": remedy})


def parse_result(message: str | None, stage: Stage) -> RunResult | None:
    """The RunResult in a termination message, or None where there is none of this stage."""
    try:
        result = RunResult.model_validate_json(message or "")
    except ValidationError:
        return None
    return result if result.stage is stage else None


def _fitted(message: str) -> str:
    return shortened(one_line(message), MESSAGE_LENGTH)


def _reported_result(job: Job, report: Report | None) -> RunResult | None:
    if report is None or (report.body.stage, report.body.attempt) != (job.stage, job.attempt):
        return None
    return report.body.result


def _failure_of_pod(pod: Pod, stage: Stage) -> Failure | None:
    if pod.reason == Reason.EVICTED:
        message = f"the kubelet evicted pod {pod.name}: it used too much disk"
        return a_failure(FailureClass.DISK_FULL, Reason.EVICTED, message, stage)
    if pod.exit_reason == Reason.OOM_KILLED:
        message = f"pod {pod.name} was killed for using more memory than its limit"
        return a_failure(FailureClass.HOST_OUT_OF_MEMORY, Reason.OOM_KILLED, message, stage, pod.exit_code)
    if pod.exit_code:
        kind = CLASS_OF_EXIT_CODE.get(Exit(pod.exit_code)) if pod.exit_code in set(Exit) else None
        message = f"pod {pod.name} ended with exit code {pod.exit_code} and no readable message; see its log"
        return a_failure(kind or FailureClass.INFRASTRUCTURE, Reason.NO_MESSAGE, message, stage, pod.exit_code)
    return _turned_away(pod, stage) if pod.phase == "Failed" and pod.reason and pod.exit_code is None else None


def _turned_away(pod: Pod, stage: Stage) -> Failure:
    """A pod that its node did not let start, say because a GPU of it is broken."""
    message = f"the kubelet turned pod {pod.name} away: {pod.detail or 'it does not say why'}"
    failure = Failure(
        failure_class=FailureClass.INFRASTRUCTURE, reason=as_word(pod.reason or ""), message=_fitted(message)
    )
    return with_remedy(failure, stage)


def _failure_without_pod(job: Job) -> Failure:
    message = f"Job {job.name} failed ({job.reason or 'no reason given'}) and none of its pods is left to say why"
    return a_failure(FailureClass.INFRASTRUCTURE, Reason.POD_LOST, message, job.stage)
