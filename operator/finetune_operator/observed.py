"""What a pass sees: Jobs and pods of one Finetune as plain facts, read from the objects the API server returns."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from finetune_api import names
from finetune_api.names import Stage
from finetune_api.resource import Finetune
from finetune_api.run import ProgressReport

Body = Mapping[str, Any]


class JobState(StrEnum):
    """Where a Job is. `FailureTarget` still counts as running: its pods are only about to go."""

    RUNNING = "Running"
    COMPLETE = "Complete"
    FAILED = "Failed"


@dataclass(frozen=True)
class Pod:
    """One pod of a Job."""

    name: str
    uid: str
    phase: str
    created_at: datetime | None
    started_at: datetime | None
    """When the trainer container started."""
    waiting: str | None
    """Why it has not started, in the scheduler's or kubelet's own words."""
    scheduled: bool | None
    """Whether it has a node; None while the scheduler has not looked at it."""
    exit_code: int | None
    exit_reason: str | None
    """Reason of the terminated container, such as OOMKilled."""
    message: str | None
    """Termination message: the result of the trainer."""
    disruption: str | None
    """Reason of condition DisruptionTarget: preempted, drained, node lost."""
    reason: str | None
    """`status.reason`, such as Evicted."""

    @property
    def is_active(self) -> bool:
        """True while the pod holds, or may yet take, its resources."""
        return self.phase in ("Pending", "Running", "Unknown")


@dataclass(frozen=True)
class Job:
    """One attempt at one stage, with every pod that was seen of it."""

    name: str
    stage: Stage
    attempt: int
    state: JobState
    reason: str | None
    """Why it failed, in the Job controller's words."""
    created_at: datetime | None
    finished_at: datetime | None
    pods: tuple[Pod, ...]
    trouble: str | None = None
    """Newest warning Event about the Job or its pod, while no pod of it has started."""
    uid: str = ""
    is_suspended: bool = False
    """True while a queue, or whoever else set `spec.suspend`, keeps its pods from being made."""
    is_leaving: bool = False
    """True once it is being deleted: it goes when its pods have gone."""

    @property
    def has_started(self) -> bool:
        """True once a trainer container of it ran."""
        return any(pod.started_at for pod in self.pods)


@dataclass(frozen=True)
class Report:
    """The newest report of a trainer, and when it came."""

    body: ProgressReport
    received_at: datetime


@dataclass(frozen=True)
class Observed:
    """Everything one pass knows beyond the Finetune itself."""

    jobs: tuple[Job, ...] = ()
    orphans: tuple[Pod, ...] = ()
    """Pods whose Job is gone: somebody deleted it, and they are on their way out."""
    report: Report | None = None
    base: Finetune | None = None
    """The Finetune that `model.finetuneRef` names, where it exists."""

    def job(self, stage: Stage, attempt: int) -> Job | None:
        """That attempt's Job."""
        return next((job for job in self.jobs if (job.stage, job.attempt) == (stage, attempt)), None)


def observed_children(
    jobs: Iterable[Body], pods: Iterable[Body], owner_uid: str
) -> tuple[tuple[Job, ...], tuple[Pod, ...]]:
    """The Jobs that the Finetune with this uid controls, each with its pods, and the pods whose Job is gone."""
    seen, own = list(pods), [body for body in jobs if _controller_uid(body) == owner_uid]
    uids = {body["metadata"]["uid"] for body in own}
    orphans = tuple(_pod(pod) for pod in seen if _controller_uid(pod) not in uids)
    return tuple(_job(body, seen) for body in own), orphans


def _job(body: Body, pods: list[Body]) -> Job:
    metadata, status = body["metadata"], body.get("status", {})
    conditions = _conditions(status)
    failed, complete = conditions.get("Failed", {}), conditions.get("Complete", {})
    is_failed, is_complete = failed.get("status") == "True", complete.get("status") == "True"
    return Job(
        name=metadata["name"],
        stage=Stage(metadata["labels"][names.LABEL_STAGE]),
        attempt=int(metadata["labels"][names.LABEL_ATTEMPT]),
        state=JobState.FAILED if is_failed else JobState.COMPLETE if is_complete else JobState.RUNNING,
        reason=failed.get("reason"),
        created_at=parse_time(metadata.get("creationTimestamp")),
        finished_at=parse_time((failed if is_failed else complete).get("lastTransitionTime")),
        pods=tuple(_pod(pod) for pod in pods if _controller_uid(pod) == metadata["uid"]),
        uid=metadata["uid"],
        is_suspended=bool(body.get("spec", {}).get("suspend")),
        is_leaving="deletionTimestamp" in metadata,
    )


def _pod(body: Body) -> Pod:
    metadata, status = body["metadata"], body.get("status", {})
    conditions = _conditions(status)
    state: Body = next(
        (c["state"] for c in status.get("containerStatuses", []) if c["name"] == names.TRAINER_CONTAINER), {}
    )
    terminated, running = state.get("terminated", {}), state.get("running", {})
    scheduled, disruption = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        phase=status.get("phase", "Pending"),
        created_at=parse_time(metadata.get("creationTimestamp")),
        started_at=parse_time(terminated.get("startedAt") or running.get("startedAt")),
        waiting=_waiting(scheduled, state.get("waiting", {})),
        scheduled={"True": True, "False": False}.get(scheduled.get("status", "")),
        exit_code=terminated.get("exitCode"),
        exit_reason=terminated.get("reason"),
        message=terminated.get("message"),
        disruption=disruption.get("reason") if disruption.get("status") == "True" else None,
        reason=status.get("reason"),
    )


def _waiting(scheduled: Body, waiting: Body) -> str | None:
    if scheduled.get("status") == "False":
        return f"{scheduled.get('reason', 'Unschedulable')}: {scheduled.get('message', '')}".rstrip(": ")
    if waiting:
        return f"{waiting.get('reason', 'Waiting')}: {waiting.get('message', '')}".rstrip(": ")
    return None


def _conditions(status: Body) -> dict[str, Body]:
    return {condition["type"]: condition for condition in status.get("conditions", [])}


def _controller_uid(body: Body) -> str | None:
    owners = body["metadata"].get("ownerReferences", [])
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def parse_time(text: str | None) -> datetime | None:
    """A Kubernetes timestamp; None stays None."""
    return datetime.fromisoformat(text) if text else None
