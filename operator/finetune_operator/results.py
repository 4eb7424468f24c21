"""What the stages found, taken over into the status. Pure."""

from dataclasses import replace

from finetune_api.names import ConditionType
from finetune_api.reasons import Reason
from finetune_api.run import RunResult
from finetune_api.states import TRUE, Verdict
from finetune_api.status import Resolved

from finetune_operator import stages, steps
from finetune_operator.steps import Run
from finetune_operator.verdict import Step


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
