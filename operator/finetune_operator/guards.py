"""What is watched while a run trains: whether anything is heard of its trainer. Pure.

A trainer tells of each step and of each new thing that it does, so silence is the sign of one that hangs. Silence alone
ends nothing: only where the spec says so is the attempt given up.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.names import ConditionType, FailureClass, Stage, StageState
from finetune_api.placement import OnStall
from finetune_api.reasons import Reason
from finetune_api.states import FALSE, TRUE
from finetune_api.status import Failure, FinetuneStatus

from finetune_operator import stages
from finetune_operator.attempts import a_failure
from finetune_operator.conditions import condition_of
from finetune_operator.steps import Run, conditions_with


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
    report, progress = run.observed.report, run.status.progress
    signs = [entry.started_at]
    if report and (report.body.stage, report.body.attempt) == (Stage.TRAIN, entry.attempt):
        signs.append(report.received_at)
    if progress and progress.updated_at:  # All that is known after a restart of the operator.
        signs.append(progress.updated_at)
    since = max(signs)
    return Silence(since, since + timedelta(seconds=allowed) - run.now)


def watched(run: Run) -> FinetuneStatus:
    """The status with condition Progressing: false while a trainer is silent too long, true once it speaks again."""
    heard, known = silence(run), condition_of(run.status, ConditionType.PROGRESSING)
    if heard is None:
        return _without_word(run.status)
    if heard.is_too_long:
        told = FALSE, Reason.NO_PROGRESS, _words(run, heard)
    elif known:
        told = TRUE, Reason.TRAINING, "the trainer tells of its progress again"
    else:
        return run.status
    return run.status.model_copy(update={"conditions": conditions_with(run, ConditionType.PROGRESSING, *told)})


def settled(status: FinetuneStatus) -> FinetuneStatus:
    """The status without what was said of a trainer that does not run any more."""
    entry = stages.find(status, Stage.TRAIN)
    return status if entry and entry.state is StageState.RUNNING else _without_word(status)


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


def _without_word(status: FinetuneStatus) -> FinetuneStatus:
    kept = [condition for condition in status.conditions if condition.type is not ConditionType.PROGRESSING]
    return status.model_copy(update={"conditions": kept})


def _words(run: Run, heard: Silence) -> str:
    entry, progress = stages.find(run.status, Stage.TRAIN), run.status.progress
    doing = (entry and entry.message) or "nothing that it told"
    at = f" at step {progress.step} of {progress.total_steps}" if progress else ""
    limit = f"spec.guards.stallSeconds is {run.finetune.spec.guards.stall_seconds}"
    return f"nothing was heard of the trainer since {heard.since:%H:%M:%S} UTC; it was {doing}{at}; {limit}"
