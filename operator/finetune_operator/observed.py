"""What a pass sees: Jobs and pods of one Finetune as plain facts, read from the objects the API server returns."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from finetune_api import names
from finetune_api.names import Errand, Stage
from finetune_api.reasons import Reason
from finetune_api.resource import Finetune
from finetune_api.run import ProgressReport
from finetune_api.words import as_word

Body = Mapping[str, Any]
Labels = Mapping[str, str]

CHILD_NAME = re.compile(rf"-(?P<stage>{'|'.join(Stage)})-(?P<attempt>[1-9][0-9]*)$")
"""How the names of Jobs end: `manifests.child_name` makes them."""

READING_LETTERS = {stage: stage.value[0] for stage in Stage}
"""What stands for a stage in the name of the Job that reads its result."""

READING_NAME = re.compile(rf"-{Errand.RESULT}-(?P<stage>{'|'.join(READING_LETTERS.values())})(?P<attempt>[1-9][0-9]*)$")
"""How the names of these end: `errands.reading_name` makes them."""


INDEX = re.compile(r"[0-9]{1,9}")
"""What the Job controller writes of a pod: which of its Job it is."""


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
    """Why it was taken away: reason of condition DisruptionTarget, or that somebody deleted it while its Job ran."""
    reason: str | None
    """`status.reason`, such as Evicted."""
    detail: str | None = None
    """`status.message`: the kubelet's own words on that."""
    index: int = 0
    """Which pod of its Job it is; the first one of a gang speaks for all."""
    node: str | None = None
    """Name of its node, once it has one."""
    leaves_by: datetime | None = None
    """When it must have left, once it was told to; its grace period is counted in."""
    is_of_job: bool = False
    """Whether a Job has made it, also one that is gone; other pods that carry our labels are not ours to delete."""

    @property
    def says_why(self) -> bool:
        """Whether it says more of why it has not started than a reason such as `ContainerCreating`."""
        return self.waiting is not None and ":" in self.waiting

    @property
    def is_active(self) -> bool:
        """True while the pod holds, or may yet take, its resources."""
        return self.phase in ("Pending", "Running", "Unknown")


def _age(pod: Pod) -> tuple[datetime, str]:
    """What pods are sorted by, the newest last."""
    return pod.created_at or datetime.min.replace(tzinfo=UTC), pod.name


@dataclass(frozen=True)
class Job:
    """One attempt at one stage, with every pod that was seen of it, in the order of their indexes."""

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
    """Newest warning Event about the Job or its pods, or of its queue, while one of its pods has not started."""
    uid: str = ""
    is_suspended: bool = False
    """True while a queue, or whoever else set `spec.suspend`, keeps its pods from being made."""
    deleted_at: datetime | None = None
    """When it was deleted; it goes when its pods have gone."""
    is_failing: bool = False
    """True once a pod of it has failed: the Job controller deletes the others."""
    size: int = 1
    """Pods that work together; more than one are a gang, which works only as a whole."""
    queue_priority: str = ""
    """The priority that a queue gives it."""

    @property
    def is_leaving(self) -> bool:
        """True once it is being deleted."""
        return self.deleted_at is not None

    @property
    def started_at(self) -> datetime | None:
        """When the trainer container of its last pod started; None while one of them has not."""
        starts = [pod.started_at for pod in self._newest_by_index() if pod.started_at]
        return max(starts) if len(starts) >= self.size else None

    @property
    def has_started(self) -> bool:
        """True once all its pods run, or have run."""
        return self.started_at is not None

    def gathered_seconds(self, now: datetime) -> int:
        """Pod-seconds for which its pods have run until the last one of them started, or until now."""
        starts = [pod.started_at for pod in self._newest_by_index() if pod.started_at]
        until = self.started_at or now
        return sum(max(0, int((until - start).total_seconds())) for start in starts) if self.size > 1 else 0

    @property
    def first_pods(self) -> tuple[Pod, ...]:
        """The pods that speak for the Job: those with the first index."""
        return tuple(pod for pod in self.pods if pod.index == 0)

    @property
    def slowest_pod(self) -> Pod | None:
        """The pod that holds it up: one without a node, else one that has not started, else the newest."""

        def readiness(pod: Pod) -> tuple[bool, bool, datetime, str]:
            return pod.scheduled is False, not pod.started_at, *_age(pod)

        return max(self._newest_by_index(), key=readiness, default=None)

    def _newest_by_index(self) -> list[Pod]:
        """One pod of each index: after a queue has taken its pods back, a Job gets others."""
        return list({pod.index: pod for pod in sorted(self.pods, key=_age)}.values())


@dataclass(frozen=True)
class Cleanup:
    """The Job that removes what a run wrote."""

    state: JobState
    created_at: datetime | None
    message: str | None
    """Termination message of its newest pod that has one."""
    waiting: str | None
    """Why it has not come further, in the words of the Job controller, the scheduler or the kubelet."""


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
    bases: tuple[Finetune, ...] = ()
    """The Finetune that `model.finetuneRef` names, where it exists, then the one that it waits for, and so on."""
    node: Labels | None = None
    """Labels of the node that the newest train pod has; None while there is none, or nobody may read it."""
    nodes: tuple[Labels, ...] = ()
    """Labels of the nodes that `trainer.nodeSelector` allows, as long as no train pod has one."""
    readings: tuple[Job, ...] = ()
    """Jobs that read from S3 what an attempt came to whose own words were lost."""
    cleanup: Cleanup | None = None
    """The Job that removes what the run wrote; looked for only once the Finetune is being deleted."""

    @property
    def base(self) -> Finetune | None:
        """The Finetune that this one starts from."""
        return self.bases[0] if self.bases else None

    def job(self, stage: Stage, attempt: int) -> Job | None:
        """That attempt's Job."""
        return next((job for job in self.jobs if (job.stage, job.attempt) == (stage, attempt)), None)

    @property
    def train_node(self) -> str | None:
        """Name of the node of the newest train attempt; of a gang, of its first pod that has one."""
        trains = sorted((job for job in self.jobs if job.stage is Stage.TRAIN), key=lambda job: -job.attempt)
        return next((pod.node for job in trains for pod in job.pods if pod.node), None)

    @property
    def active_pod(self) -> str | None:
        """Name of a pod of any attempt that still holds, or may yet take, its resources; its Job may be gone."""
        return next((pod.name for pod in self._pods if pod.is_active), None)

    @property
    def strays(self) -> tuple[Pod, ...]:
        """Pods whose Job is gone, or is not known for ours any more, and that nobody has told to leave."""
        return tuple(pod for pod in self.orphans if pod.is_of_job and pod.is_active and pod.leaves_by is None)

    def overdue_pods(self, since: datetime) -> tuple[Pod, ...]:
        """Pods that should have left by then, and of which nobody says that they have."""
        return tuple(pod for pod in self._pods if pod.is_active and pod.leaves_by and pod.leaves_by <= since)

    @property
    def _pods(self) -> list[Pod]:
        return [*self.orphans, *(pod for job in self.jobs for pod in job.pods)]

    def reading_of(self, job: Job) -> Job | None:
        """The Job that reads what this one came to."""
        wanted = (job.stage, job.attempt)
        return next((found for found in self.readings if (found.stage, found.attempt) == wanted), None)


def observed_children(jobs: Iterable[Body], pods: Iterable[Body], owner_uid: str) -> Observed:
    """The Jobs that the Finetune with this uid controls, each with its pods, and the pods whose Job is gone."""
    seen, own = list(pods), [body for body in jobs if _controller_uid(body) == owner_uid]
    uids = {body["metadata"]["uid"] for body in own}

    def named(pattern: re.Pattern[str]) -> tuple[Job, ...]:
        placed = [(body, place) for body in own if (place := _place(body, pattern))]
        return tuple(_job(body, *place, [pod for pod in seen if _is_of(pod, body)]) for body, place in placed)

    orphans = tuple(_pod(pod) for pod in seen if _controller_uid(pod) not in uids)
    return Observed(jobs=named(CHILD_NAME), orphans=orphans, readings=named(READING_NAME))


def observed_cleanup(jobs: Iterable[Body], pods: Iterable[Body]) -> Cleanup | None:
    """The Job of a cleanup, of which there is one at most, with what is known of its pods."""
    body = next(iter(jobs), None)
    if body is None:
        return None
    conditions = _conditions(body.get("status", {}))
    tries = sorted((_pod(pod) for pod in pods if _is_of(pod, body)), key=_age)
    said = [pod.message for pod in tries if pod.message]
    words = [*(pod.waiting for pod in tries if pod.waiting), conditions.get("Failed", {}).get("message")]
    return Cleanup(
        state=_state(conditions),
        created_at=parse_time(body["metadata"].get("creationTimestamp")),
        message=said[-1] if said else None,
        waiting=next((text for text in words if text), None),
    )


def _place(body: Body, pattern: re.Pattern[str]) -> tuple[Stage, int] | None:
    """Which attempt a Job is about, by its name, which nobody can edit; None for one with another kind of name."""
    found = pattern.search(body["metadata"]["name"])
    if found is None:
        return None
    stages = {letter: stage for stage, letter in READING_LETTERS.items()} | {stage.value: stage for stage in Stage}
    return stages[found["stage"]], int(found["attempt"])


def _job(body: Body, stage: Stage, attempt: int, pods: list[Body]) -> Job:
    metadata, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    conditions = _conditions(status)
    state = _state(conditions)
    ended = conditions.get(state.value, {})
    is_failing = conditions.get("FailureTarget", {}).get("status") == "True"
    is_suspended, deleted_at = bool(spec.get("suspend")), parse_time(metadata.get("deletionTimestamp"))
    # Until a pod has failed, nobody who acts for this run deletes one.
    is_whole = not any(pod.get("status", {}).get("phase") == "Failed" for pod in pods)
    runs = is_whole and state is JobState.RUNNING and not (is_failing or is_suspended or deleted_at)
    return Job(
        name=metadata["name"],
        stage=stage,
        attempt=attempt,
        state=state,
        reason=ended.get("reason") if state is JobState.FAILED else None,
        created_at=parse_time(metadata.get("creationTimestamp")),
        finished_at=parse_time(ended.get("lastTransitionTime")),
        pods=tuple(sorted((_pod(pod, belongs=runs) for pod in pods), key=lambda pod: pod.index)),
        uid=metadata["uid"],
        is_suspended=is_suspended,
        deleted_at=deleted_at,
        is_failing=is_failing,
        size=max(1, spec.get("parallelism", 1)),  # Somebody may have edited it to nothing.
        queue_priority=metadata.get("labels", {}).get(names.QUEUE_PRIORITY_LABEL, ""),
    )


def _state(conditions: Mapping[str, Body]) -> JobState:
    """Where a Job is, by its conditions, two of which have the names of states."""
    ended = (JobState.FAILED, JobState.COMPLETE)
    return next((state for state in ended if conditions.get(state.value, {}).get("status") == "True"), JobState.RUNNING)


def _pod(body: Body, *, belongs: bool = False) -> Pod:
    """The pod; one that `belongs` to a Job that runs is deleted by somebody else, if at all."""
    metadata, status = body["metadata"], body.get("status", {})
    conditions = _conditions(status)
    state: Body = next(
        (c["state"] for c in status.get("containerStatuses", []) if c["name"] == names.TRAINER_CONTAINER), {}
    )
    terminated, running = state.get("terminated", {}), state.get("running", {})
    scheduled, disruption = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    deleted = Reason.POD_DELETED if belongs and "deletionTimestamp" in metadata else None
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
        disruption=as_word(disruption.get("reason", "")) if disruption.get("status") == "True" else deleted,
        reason=status.get("reason"),
        detail=status.get("message"),
        leaves_by=parse_time(metadata.get("deletionTimestamp")),
        is_of_job=names.NODE_RANK_ANNOTATION in metadata.get("annotations", {}),
        index=_index(metadata),
        node=body.get("spec", {}).get("nodeName"),
    )


def _index(metadata: Body) -> int:
    """Which pod of its Job it is; one whose annotation somebody has edited is taken for the first."""
    text = str(metadata.get("annotations", {}).get(names.NODE_RANK_ANNOTATION, 0))
    return int(text) if INDEX.fullmatch(text) else 0


def _waiting(scheduled: Body, waiting: Body) -> str | None:
    if scheduled.get("status") == "False":
        return f"{scheduled.get('reason', 'Unschedulable')}: {scheduled.get('message', '')}".rstrip(": ")
    if waiting:
        return f"{waiting.get('reason', 'Waiting')}: {waiting.get('message', '')}".rstrip(": ")
    return None


def _conditions(status: Body) -> dict[str, Body]:
    return {condition["type"]: condition for condition in status.get("conditions", [])}


def controller_of(body: Body) -> dict[str, Any] | None:
    """The owner reference of the object's controller, where it has one."""
    return next((owner for owner in body["metadata"].get("ownerReferences", []) if owner.get("controller")), None)


def _controller_uid(body: Body) -> str | None:
    owner = controller_of(body)
    return owner["uid"] if owner else None


def _is_of(pod: Body, job: Body) -> bool:
    return bool(_controller_uid(pod) == job["metadata"]["uid"])


def parse_time(text: str | None) -> datetime | None:
    """A Kubernetes timestamp; None stays None."""
    return datetime.fromisoformat(text) if text else None
