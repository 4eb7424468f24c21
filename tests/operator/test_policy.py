"""What an operator does not allow is told at once, and nothing of it is run."""

from typing import Any

import pytest
from finetune_api.names import Stage
from finetune_operator.decide import decide
from finetune_operator.observed import Observed
from finetune_operator.verdict import Attempt

from tests.builders import NOON, a_finetune, some_settings

REMOTE_CODE = {"model": {"uri": "hf://a/b", "trustRemoteCode": True}}
INNER = "http://169.254.169.254/latest"


def refusal_of(settings: dict[str, Any], **spec: Any) -> tuple[str, str]:
    """Reason and message; empty where the run begins."""
    decision = decide(a_finetune(**spec), Observed(), some_settings(**settings), NOON)
    failure = decision.status.failure
    if failure is None:
        assert decision.start == Attempt(Stage.PREPARE, 1)
        return "", ""
    assert (decision.start, decision.status.phase, failure.failure_class) == (None, "Failed", "InvalidConfig")
    return failure.reason, failure.message


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        (REMOTE_CODE, "RemoteCodeForbidden", "settings.allowRemoteCode"),
        ({"storage": {"endpoint": INNER}}, "AddressForbidden", f"storage.endpoint {INNER}"),
        ({"datasets": [{"name": "a", "uri": "https://169.254.169.254/x"}]}, "AddressForbidden", "datasets[].uri"),
        ({"tracking": {"sinks": ["mlflow"], "mlflow": {"trackingUri": INNER}}}, "AddressForbidden", "tracking.mlflow"),
        ({"tracking": {"sinks": ["wandb"], "wandb": {"baseUrl": INNER}}}, "AddressForbidden", "tracking.wandb"),
        ({"storage": {"endpoint": "http://minio.storage.svc:9000"}}, "", ""),
        ({"trainer": {"nodeSelector": {"no label key!": "x"}}}, "JobInvalid", "trainer.nodeSelector: 'no label key!'"),
        ({"trainer": {"podLabels": {"a/b/c": "x"}}}, "JobInvalid", "trainer.podLabels: 'a/b/c'"),
        ({"trainer": {"podAnnotations": {"x" * 64: "x"}}}, "JobInvalid", "trainer.podAnnotations"),
        ({"trainer": {"nodeSelector": {"nvidia.com/gpu.product": "x", "pool": ""}}}, "", ""),
    ],
)
def test_what_is_forbidden_fails_and_names_the_field(spec: dict[str, Any], reason: str, words: str) -> None:
    told, message = refusal_of({}, **spec)
    assert told == reason
    assert words in message


def test_code_of_a_model_runs_where_the_operator_allows_it() -> None:
    assert refusal_of({"allow_remote_code": True}, **REMOTE_CODE) == ("", "")


@pytest.mark.parametrize(
    ("uri", "is_allowed"),
    [
        ("s3://models/team-a", True),
        ("s3://models/team-a/", True),
        ("s3://models/team-a/x", True),
        ("s3://models/team-ab", False),
        ("s3://models", False),
        ("s3://models-of-others/team-a", False),
        ("s3://shared/x", True),
        ("s3://shared", True),
    ],
)
def test_a_run_writes_below_an_allowed_prefix_or_not_at_all(uri: str, is_allowed: bool) -> None:
    settings = {"allowed_output_prefixes": ["s3://models/{namespace}", "s3://shared/"]}
    reason, message = refusal_of(settings, output={"uri": uri})
    assert reason == ("" if is_allowed else "OutputForbidden")
    assert is_allowed or "settings.allowedOutputPrefixes" in message
    assert refusal_of({}, output={"uri": uri}) == ("", ""), "without prefixes, anywhere"


def test_a_run_that_has_begun_keeps_what_it_was_allowed() -> None:
    begun = decide(a_finetune(), Observed(), some_settings(), NOON).status
    stricter = some_settings(allowed_output_prefixes=["s3://elsewhere"])
    assert decide(a_finetune(status=begun, **REMOTE_CODE), Observed(), stricter, NOON).status.failure is None
