"""Builders for tests: each shows only what matters to its test."""

from datetime import UTC, datetime
from typing import Any

from finetune_api import names
from finetune_api.names import Stage
from finetune_api.resource import Finetune, parse_finetune
from finetune_api.run import ProgressReport, RunResult
from finetune_api.status import FinetuneStatus
from finetune_operator.observed import Job, JobState, Pod, Report
from finetune_operator.settings import Settings

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
UID = "9f3c2a10-0000-4000-8000-000000000001"


def a_body(name: str = "story", namespace: str = "team-a", **spec: Any) -> dict[str, Any]:
    """A Finetune as a user writes it, and as `kubectl apply` sends it."""
    minimal = {
        "model": {"uri": "s3://models/base"},
        "datasets": [{"name": "faq", "uri": "s3://data/faq.jsonl"}],
        "output": {"uri": "s3://out/models"},
    }
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": minimal | spec,
    }


def a_finetune(*, status: FinetuneStatus | None = None, **spec: Any) -> Finetune:
    """A Finetune that the API server has admitted."""
    body = a_body(**spec)
    body["metadata"] |= {"uid": UID, "generation": 1, "resourceVersion": "7", "creationTimestamp": NOON.isoformat()}
    finetune = parse_finetune(body)
    return finetune.model_copy(update={"status": status}) if status else finetune


def some_settings(**changes: Any) -> Settings:
    """Settings as the chart renders them."""
    return Settings(trainer_image="registry.example/trainer:1", report_url="http://operator.test:8080", **changes)


def a_pod(**changes: Any) -> Pod:
    """A pod that has just been made."""
    facts: dict[str, Any] = dict.fromkeys(Pod.__dataclass_fields__)
    facts |= {"name": "story-pod", "uid": "pod-uid", "phase": "Pending", "created_at": NOON, "index": 0}
    return Pod(**(facts | changes))


def a_failed_pod(**changes: Any) -> Pod:
    """A pod that has ended badly."""
    return a_pod(**{"phase": "Failed", "started_at": NOON, "exit_code": 1, **changes})


def a_job(stage: Stage = Stage.TRAIN, attempt: int = 1, state: JobState = JobState.RUNNING, *pods: Pod) -> Job:
    """An attempt's Job."""
    return Job(
        name=f"story-9f3c2a10-{stage}-{attempt}",
        stage=stage,
        attempt=attempt,
        state=state,
        reason="BackoffLimitExceeded" if state is JobState.FAILED else None,
        created_at=NOON,
        finished_at=None if state is JobState.RUNNING else NOON,
        pods=pods,
    )


def a_result(stage: Stage, **parts: Any) -> RunResult:
    """What a stage answers when all went well."""
    if stage is Stage.TRAIN:
        artifact = {"uri": "s3://out/a", "manifestUri": "s3://out/manifest.json", "format": "adapter", "bytes": 9}
        parts = {"artifact": artifact | {"sha256": "0" * 64, "files": 3}} | parts
    else:
        parts = {"data": {"rows": {"train": 8, "dev": 2}}, "resolved": {"modelRevision": "abc"}} | parts
    return RunResult.model_validate({"stage": stage.value, **parts})


def a_failure_message(stage: Stage, kind: str, reason: str, message: str = "what is wrong, and where") -> str:
    """The termination message of a trainer that failed."""
    failure = {"class": kind, "reason": reason, "message": message}
    return RunResult.model_validate({"stage": stage.value, "failure": failure}).to_message()


def a_report(stage: Stage = Stage.TRAIN, attempt: int = 1, received_at: datetime = NOON, **parts: Any) -> Report:
    """A trainer's report."""
    identity = {"namespace": "team-a", "name": "story", "uid": UID}
    body = {"identity": identity, "stage": stage.value, "attempt": attempt, "activity": "training"} | parts
    return Report(ProgressReport.model_validate(body), received_at)
