"""`evaluation.gate`: both directions, the comparison with the base, and what is said where it is not reached."""

from typing import Any

import pytest
from finetune_api.evaluation import Gate
from finetune_api.findings import EvaluationStatus
from finetune_api.names import FailureClass
from finetune_trainer.errors import RunError
from finetune_trainer.gate import check_measurable, gate_failure

MEASURED = EvaluationStatus.model_validate(
    {"perplexity": {"base": 31.2, "tuned": 4.1}, "exactMatch": {"base": 0.5, "tuned": 0.5}}
)


def missed(metric: str, **limits: Any) -> str | None:
    error = gate_failure(Gate.model_validate({"metric": metric, **limits}), MEASURED)
    assert error is None or error.failure_class is FailureClass.GATE_FAILED
    return None if error is None else error.message


@pytest.mark.parametrize(
    ("metric", "limits"),
    [
        ("exactMatch", {"minimum": 0.5}),
        ("perplexity", {"maximum": 4.1}),
        ("perplexity", {"maximum": 5, "improves": True}),
        ("perplexity", {"improves": True}),
    ],
)
def test_what_is_reached_passes(metric: str, limits: dict[str, Any]) -> None:
    assert missed(metric, **limits) is None


def test_a_model_below_the_minimum_is_told_wanted_and_got() -> None:
    wanted = "evaluation.gate wants exactMatch of at least 0.62; the tuned model has 0.5, the base 0.5"
    assert missed("exactMatch", minimum=0.62) == wanted


def test_a_perplexity_above_the_maximum_does_not_pass() -> None:
    assert missed("perplexity", maximum=4.0) == (
        "evaluation.gate wants perplexity of at most 4.0; the tuned model has 4.1, the base 31.2"
    )


def test_as_good_as_the_base_is_no_improvement() -> None:
    assert "better than the base's" in str(missed("exactMatch", minimum=0.1, improves=True))


def test_a_higher_perplexity_is_no_improvement() -> None:
    worse = EvaluationStatus.model_validate({"perplexity": {"base": 4.1, "tuned": 31.2}})
    assert gate_failure(Gate.model_validate({"metric": "perplexity", "improves": True}), worse) is not None


def test_all_that_is_missed_is_told() -> None:
    assert "of at least 0.9 and better than the base's" in str(missed("exactMatch", minimum=0.9, improves=True))


def test_a_metric_that_was_not_measured_is_not_reached() -> None:
    assert "which was not measured" in str(missed("rougeL", minimum=0.1))


def test_without_a_gate_everything_passes() -> None:
    assert gate_failure(None, EvaluationStatus()) is None


@pytest.mark.parametrize(
    ("metric", "rows", "generated", "words"),
    [
        ("perplexity", 0, 0, "none of the 0 rows to measure it on is a dev or test row"),
        ("rougeL", 4, 0, "none of the 4 rows to measure it on has a prompt"),
    ],
)
def test_a_gate_with_nothing_to_measure_is_refused_before_training(
    metric: str, rows: int, generated: int, words: str
) -> None:
    gate = Gate.model_validate({"metric": metric, "improves": True})
    with pytest.raises(RunError, match=words) as caught:
        check_measurable(gate, rows, generated)
    assert (caught.value.failure_class, caught.value.reason) == (FailureClass.INVALID_DATA, "GateUnmeasurable")


def test_perplexity_needs_no_prompt() -> None:
    check_measurable(Gate.model_validate({"metric": "perplexity", "improves": True}), 4, 0)
