"""What the stages found, taken over into the status. Pure."""

from dataclasses import replace
from datetime import timedelta

from finetune_api.findings import Resolved
from finetune_api.names import ConditionType, Stage, StageState
from finetune_api.reasons import Reason
from finetune_api.run import RunResult
from finetune_api.states import TRUE, Verdict

from finetune_operator import stages, steps
from finetune_operator.attempts import may_still_be_read, whole_result
from finetune_operator.observed import Job
from finetune_operator.progress import merge_report
from finetune_operator.steps import Run
from finetune_operator.verdict import Attempt, Step

READING_CHECK = timedelta(seconds=10)
"""How often the Job that reads a lost result is looked at, should its end not be told."""


def of_complete(run: Run, job: Job) -> Step | None:
    """What a complete Job, or one that had published, came to; where its words are lost, another Job reads it from S3.

    None where that found nothing either.
    """
    reading = run.observed.reading_of(job)
    result = whole_result(job, run.observed.report) or (whole_result(reading, None) if reading else None)
    if result is None:
        return _reading(run, job, reading)
    generation = run.finetune.metadata.generation
    merged, _ = merge_report(
        run.status, run.observed.report, job, interval=timedelta(0), generation=generation, now=run.now
    )
    status = stages.finish(merged, job, StageState.SUCCEEDED, None)
    run = replace(run, status=status.model_copy(update={"failure": None}))
    return prepared(run, result) if job.stage is Stage.PREPARE else trained(run, result)


def _reading(run: Run, job: Job, reading: Job | None) -> Step | None:
    """Waiting until another Job has read what this one came to; None once it has, in vain, or could not be made."""
    status, asked_at, in_the_way = stages.being_read(run.status, job, run.now)
    if stages.has_failed(run.status, job) or not may_still_be_read(reading, asked_at, run.now):
        return None
    message = f"Job {job.name} is complete, but its words are lost: reading from S3 what it came to"
    if reading is not None:
        status = stages.in_the_way(status, job.stage, None)
    elif in_the_way:
        message = f"{message}; {in_the_way}"
    step = steps.waiting(replace(run, status=status), Reason.READING_RESULT, message, READING_CHECK)
    return step if reading else replace(step, read=Attempt(job.stage, job.attempt))


def prepared(run: Run, result: RunResult) -> Step:
    """The run with what prepare found, kept for every attempt."""
    resolved = (run.status.resolved or Resolved()).model_copy(
        update=result.resolved.model_dump(exclude_none=True) if result.resolved else {}
    )
    rows = result.data.rows if result.data else None
    message = f"{rows.train} train, {rows.dev} dev and {rows.test} test rows are ready" if rows else "the data is ready"
    status = run.status.model_copy(
        update={
            "restarts_in_a_row": 0,
            "data": result.data,
            "effective_hyperparameters": result.effective_hyperparameters,
            "plan": result.plan,
            "estimate": result.estimate,
            "resolved": resolved,
            "conditions": steps.conditions_with(run, ConditionType.DATA_VALIDATED, TRUE, Reason.ROWS_READY, message),
        }
    )
    return Step(status, Verdict.WORKING, Reason.PREPARING, message)


def trained(run: Run, result: RunResult) -> Step:
    """The run with its artifact: it has succeeded."""
    status = measured(run, result).status
    uri = result.artifact.uri if result.artifact else ""
    return Step(status, Verdict.SUCCEEDED, Reason.SUCCEEDED, f"the artifact is published at {uri}")


def measured(run: Run, result: RunResult) -> Run:
    """The run with what its train stage brought about, whether that was published or did not pass the gate."""
    for kind, value, reason, message in stages.outcomes(result):
        run = replace(
            run,
            status=run.status.model_copy(
                update={"conditions": steps.conditions_with(run, kind, value, reason, message)}
            ),
        )
    found: dict[str, object] = {
        "plan": result.plan or run.status.plan,
        "evaluation": result.evaluation,
        "artifact": result.artifact,
        "progress": stages.final_progress(run.status, result),
        "metrics": result.metrics or run.status.metrics,
    }
    return replace(run, status=run.status.model_copy(update=found))
