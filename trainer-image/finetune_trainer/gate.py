"""`evaluation.gate`: whether the tuned model is good enough to be published. Pure: loads without torch."""

from finetune_api.evaluation import Gate
from finetune_api.findings import EvaluationStatus
from finetune_api.metrics import METRICS, Metric
from finetune_api.names import FailureClass

from finetune_trainer.errors import RunError


def check_measurable(gate: Gate | None, rows: int, generated: int) -> None:
    """Raise RunError (InvalidData, GateUnmeasurable) where there is nothing to measure the gate's metric on.

    `rows` are the evaluation rows, `generated` those whose prompt can be continued.
    """
    if gate is None or (rows if gate.metric is Metric.PERPLEXITY else generated):
        return
    what = "has a prompt that can be continued" if rows else "is a dev or test row"
    message = f"evaluation.gate needs {gate.metric}, but none of the {rows} rows to measure it on {what}"
    remedy = "Give dev or test rows with prompts, or leave evaluation.gate out."
    raise RunError(FailureClass.INVALID_DATA, "GateUnmeasurable", message, remedy)


def gate_failure(gate: Gate | None, evaluation: EvaluationStatus) -> RunError | None:
    """What the tuned model does not reach (GateFailed, with the metric, wanted and got); None where it is good enough.

    A metric that was not measured is not reached.
    """
    if gate is None:
        return None
    found = evaluation.measured().get(gate.metric)
    if found is None or found.base is None or found.tuned is None:
        return _failed(f"evaluation.gate wants {gate.metric}, which was not measured")
    wanted = _missed(gate, found.base, found.tuned)
    if not wanted:
        return None
    got = f"the tuned model has {found.tuned:.6g}, the base {found.base:.6g}"
    return _failed(f"evaluation.gate wants {gate.metric} {' and '.join(wanted)}; {got}")


def _missed(gate: Gate, base: float, tuned: float) -> list[str]:
    """What is wanted and not reached, in words."""
    better = tuned < base if METRICS[gate.metric].lower_is_better else tuned > base
    conditions = [
        (gate.minimum is None or tuned >= gate.minimum, f"of at least {gate.minimum}"),
        (gate.maximum is None or tuned <= gate.maximum, f"of at most {gate.maximum}"),
        (better or not gate.improves, "better than the base's"),
    ]
    return [words for reached, words in conditions if not reached]


def _failed(message: str) -> RunError:
    return RunError(FailureClass.GATE_FAILED, "GateFailed", message)
