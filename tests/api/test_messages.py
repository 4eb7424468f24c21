"""The contract between operator and trainer: messages fit, parse, and say the same on both sides."""

import json
from typing import Any

import pytest
from finetune_api.failures import POLICIES, Next
from finetune_api.fields import LARGEST_COUNT
from finetune_api.findings import EvaluationStatus
from finetune_api.metrics import METRICS, Metric
from finetune_api.names import MAX_NAME_LENGTH, TERMINATION_MESSAGE_BYTES, Exit, FailureClass, Stage
from finetune_api.resource import FinetuneSpec, parse_finetune
from finetune_api.run import RunResult, RunSpec
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.builders import a_body, a_finetune

ANY_TEXT = st.text(max_size=2048)
LONG_TEXT = st.builds(lambda unit, times: (unit * times)[:2048], st.text(min_size=1, max_size=4), st.just(2048))
COUNTS = st.integers(min_value=0, max_value=LARGEST_COUNT)


def failures(text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    kinds = st.sampled_from([kind.value for kind in FailureClass])
    remedies = text.map(lambda long: long[:300])
    return st.fixed_dictionaries({"class": kinds, "reason": st.just("Why"), "message": text, "remedy": remedies})


def results(text: st.SearchStrategy[str]) -> st.SearchStrategy[RunResult]:
    warnings = st.lists(text.map(lambda long: long[:200]), max_size=8)
    data = st.fixed_dictionaries({"tokens": COUNTS, "maxLength": COUNTS, "warnings": warnings})
    whole = st.fixed_dictionaries({"stage": st.sampled_from(list(Stage)), "failure": failures(text), "data": data})
    return whole.map(RunResult.model_validate)


@given(results(ANY_TEXT | LONG_TEXT))
def test_a_result_of_any_text_fits_and_parses(result: RunResult) -> None:
    message = result.to_message()
    assert len(message.encode()) <= TERMINATION_MESSAGE_BYTES
    read = RunResult.model_validate_json(message)
    assert read.stage is result.stage
    assert read.failure is not None
    assert result.failure is not None
    assert (read.failure.failure_class, read.failure.reason) == (result.failure.failure_class, result.failure.reason)


@given(results(st.text(max_size=60)))
def test_a_result_that_fits_is_not_cut(result: RunResult) -> None:
    assert RunResult.model_validate_json(result.to_message()) == result


def test_the_message_is_one_line() -> None:
    failure = {"class": "InvalidData", "reason": "Broken", "message": "line 1\nline 2"}
    assert "\n" not in RunResult.model_validate({"stage": "prepare", "failure": failure}).to_message()


def test_warnings_are_cut_before_what_failed() -> None:
    failure = {"class": "InvalidData", "reason": "Broken", "message": "x" * 1900}
    result = RunResult.model_validate(
        {
            "stage": "prepare",
            "failure": failure,
            "data": {"warnings": [f"{n}" * 200 for n in range(8)], "reportUri": "s3://" + "u" * 1000},
        }
    )
    read = RunResult.model_validate_json(result.to_message())
    assert read.failure == result.failure
    assert read.data is not None
    assert 0 < len(read.data.warnings) < 8


def test_a_result_without_text_to_cut_says_so() -> None:
    with pytest.raises(ValueError, match="the limit is too small"):
        RunResult(stage=Stage.TRAIN).to_message(limit=5)


def test_an_order_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        RunSpec.model_validate({"unheardOf": 1})


def test_an_answer_of_another_release_is_understood() -> None:
    assert RunResult.model_validate({"stage": "train", "unheardOf": 1}).stage is Stage.TRAIN


def test_a_finetune_survives_reading_and_writing() -> None:
    finetune = a_finetune(hyperparameters={"learningRate": 1e-4, "warmupRatio": 0.03}, method={"lora": {"rank": 4}})
    assert parse_finetune(finetune.to_json()) == finetune


def test_json_written_and_read_keeps_every_number() -> None:
    spec = FinetuneSpec.model_validate(a_body(hyperparameters={"learningRate": 0.1 + 0.2})["spec"])
    assert FinetuneSpec.model_validate(json.loads(json.dumps(spec.to_json()))) == spec


def test_fields_of_a_later_release_do_not_stop_the_operator() -> None:
    assert a_finetune(fieldOfALaterRelease={"limit": "5.00"}).spec == a_finetune().spec


def test_the_longest_name_leaves_room_for_what_children_add() -> None:
    added = f"-{'0' * 8}-{Stage.PREPARE}-9999"
    assert MAX_NAME_LENGTH + len(added) <= 63


def test_every_failure_class_has_a_policy_and_a_remedy() -> None:
    assert set(POLICIES) == set(FailureClass)
    assert [kind for kind, policy in POLICIES.items() if not policy.remedy] == []


def test_every_metric_is_shown_in_the_status_and_has_words() -> None:
    found = {str(metric): {"base": 0.5, "tuned": 1.0} for metric in Metric}
    assert list(EvaluationStatus.model_validate(found).measured()) == list(METRICS) == list(Metric)
    assert EvaluationStatus().measured() == {}


def test_exit_codes_that_lost_their_message_still_say_whether_to_go_on() -> None:
    next_by_code = {policy.exit_code: policy.next for policy in POLICIES.values() if policy.exit_code}
    assert next_by_code[Exit.INFRASTRUCTURE] is Next.RETRY
    assert next_by_code[Exit.USER_ERROR] is Next.FAIL
    assert next_by_code[Exit.TERMINATED] is Next.RESTART
    assert set(next_by_code) == set(Exit) - {Exit.OK}


def test_a_published_artifact_is_never_lost_to_a_long_address() -> None:
    uri = "s3://" + "u" * 700
    artifact = {"uri": uri, "manifestUri": uri, "format": "adapter", "bytes": 1, "sha256": "0" * 64, "files": 1}
    everything = {
        "evaluation": {"samplesUri": uri},
        "resolved": {"modelUri": "s3://" + "m" * 1000},
        "artifact": artifact,
    }
    message = RunResult.model_validate({"stage": "train", **everything}).to_message()
    assert len(message.encode()) <= 4000
    assert RunResult.model_validate_json(message).artifact is not None


def test_revisions_of_many_datasets_do_not_cost_the_counts() -> None:
    revisions = {f"{number:02d}" + "d" * 61: "sha256:" + "0" * 64 for number in range(16)}
    data = {"tokens": 7, "reportUri": "s3://" + "r" * 1000}
    resolved = {"modelUri": "s3://" + "m" * 1000, "modelRevision": "abc", "datasetRevisions": revisions}
    result = {"stage": "prepare", "data": data, "resolved": resolved}
    read = RunResult.model_validate_json(RunResult.model_validate(result).to_message())
    assert read.data is not None
    assert read.resolved is not None
    assert (read.data.tokens, read.resolved.model_revision, read.resolved.dataset_revisions) == (7, "abc", {})


def test_no_key_of_a_map_has_a_bound_that_the_api_server_does_not_know() -> None:
    assert "propertyNames" not in str(FinetuneSpec.model_json_schema())
