"""What is watched while a run trains: whether anything is heard of its trainer, and whether its GPUs compute. Pure.

A trainer tells of each step and of each new thing that it does, so silence is the sign of one that hangs. Silence alone
ends nothing: only where the spec says so is the attempt given up. GPUs that wait for their host are told, and no more.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api.names import ConditionType, FailureClass, Stage, StageState
from finetune_api.placement import OnStall
from finetune_api.reasons import Reason
from finetune_api.states import FALSE, TRUE
from finetune_api.status import Failure, FinetuneStatus, StageStatus

from finetune_operator import stages
from finetune_operator.attempts import a_failure
from finetune_operator.conditions import condition_of
from finetune_operator.steps import Run, conditions_with

WATCHED = (ConditionType.PROGRESSING, ConditionType.GPU_BUSY)
"""Conditions of a trainer that runs; they are absent as long as nothing is wrong."""


@dataclass(frozen=True)
class Silence:
    """How long nothing has been heard of the trainer of the newest attempt."""

    since: datetime
    left: timedelta
    """Until it has lasted too long; not above 0 once it has."""

    @property
    def is_too_long(self) -> bool:
        """Whether the guard speaks."""
        return self.left <= timedelta(0)


def silence(run: Run) -> Silence | None:
    """The silence of a trainer whose pods run; None for others, and where nobody wants to know."""
    allowed, entry = run.finetune.spec.guards.stall_seconds, stages.find(run.status, Stage.TRAIN)
    if not allowed or entry is None or entry.state is not StageState.RUNNING or entry.started_at is None:
        return None
    since = max([entry.started_at, *_signs(run, entry)])
    return Silence(since, since + timedelta(seconds=allowed) - run.now)


def last_seen(run: Run, entry: StageStatus) -> datetime | None:
    """When the newest train attempt is known to have run last; None for others, and where nobody has ever told."""
    if entry.name is not Stage.TRAIN or entry.started_at is None:
        return None
    reckoned = run.status.cost.as_of if run.status.cost else None
    signs = [*_signs(run, entry), *([reckoned] if reckoned else [])]
    return max((sign for sign in signs if entry.started_at < sign <= run.now), default=None)


def _signs(run: Run, entry: StageStatus) -> Iterator[datetime]:
    """When something was heard of the newest train attempt, or of one before it."""
    report, progress = run.observed.report, run.status.progress
    if report and (report.body.stage, report.body.attempt) == (Stage.TRAIN, entry.attempt):
        yield report.received_at
    if progress and progress.updated_at:  # All that is known after a restart of the operator.
        yield progress.updated_at


def watched(run: Run) -> FinetuneStatus:
    """The status with what the guards say of a trainer that runs: false while something is wrong, true afterwards."""
    return _with_gpu_busy(replace(run, status=_with_progressing(run)))


def _with_progressing(run: Run) -> FinetuneStatus:
    heard, well = silence(run), "the trainer tells of its progress again"
    if heard is None:
        return _without(run.status, ConditionType.PROGRESSING)
    wrong = _words(run, heard) if heard.is_too_long else None
    return _told(run, ConditionType.PROGRESSING, Reason.NO_PROGRESS, wrong, well)


def _with_gpu_busy(run: Run) -> FinetuneStatus:
    """As before where the trainer has not told how busy its GPUs are."""
    percent, wanted = _gpu_percent(run), run.finetune.spec.guards.idle_percent
    if not wanted:
        return _without(run.status, ConditionType.GPU_BUSY)
    if percent is None:
        return run.status
    # Without the figure itself, which changes with each report.
    wrong = f"GPUs have computed for less than {wanted} % of the last 10 minutes (spec.guards.idlePercent)"
    return _told(run, ConditionType.GPU_BUSY, Reason.GPU_IDLE, wrong if percent < wanted else None, "the GPUs compute")


def _gpu_percent(run: Run) -> int | None:
    report, entry = run.observed.report, stages.find(run.status, Stage.TRAIN)
    if report is None or entry is None or (report.body.stage, report.body.attempt) != (Stage.TRAIN, entry.attempt):
        return None
    return report.body.metrics.gpu_utilization if report.body.metrics else None


def _told(run: Run, kind: ConditionType, reason: Reason, wrong: str | None, well: str) -> FinetuneStatus:
    """The status with this condition: false with what is `wrong`, true once it is `well` again."""
    if wrong is None and condition_of(run.status, kind) is None:
        return run.status
    told = (FALSE, reason, wrong) if wrong else (TRUE, Reason.TRAINING, well)
    return run.status.model_copy(update={"conditions": conditions_with(run, kind, *told)})


def settled(status: FinetuneStatus) -> FinetuneStatus:
    """The status without what was said of a trainer that does not run any more."""
    entry = stages.find(status, Stage.TRAIN)
    return status if entry and entry.state is StageState.RUNNING else _without(status, *WATCHED)


def given_up(run: Run) -> Failure | None:
    """Why the newest attempt is to be stopped: its trainer is silent, and the spec asks for another try."""
    heard = silence(run)
    if heard is None or not heard.is_too_long or run.finetune.spec.guards.on_stall is not OnStall.RESTART:
        return None
    return a_failure(FailureClass.INFRASTRUCTURE, Reason.NO_PROGRESS, _words(run, heard))


def cause_of_stop(status: FinetuneStatus, stage: Stage) -> Failure | None:
    """Why the newest attempt of the stage was given up; None for one that was stopped for any other reason."""
    entry = stages.find(status, stage)
    return entry.cause if entry and entry.cause and entry.cause.reason == Reason.NO_PROGRESS else None


def _without(status: FinetuneStatus, *kinds: ConditionType) -> FinetuneStatus:
    kept = [condition for condition in status.conditions if condition.type not in kinds]
    return status.model_copy(update={"conditions": kept})


def _words(run: Run, heard: Silence) -> str:
    entry, progress = stages.find(run.status, Stage.TRAIN), run.status.progress
    doing = (entry and entry.message) or "nothing that it told"
    at = f" at step {progress.step} of {progress.total_steps}" if progress else ""
    limit = f"spec.guards.stallSeconds is {run.finetune.spec.guards.stall_seconds}"
    return f"nothing was heard of the trainer since {heard.since:%H:%M:%S} UTC; it was {doing}{at}; {limit}"
