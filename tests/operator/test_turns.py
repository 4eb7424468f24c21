"""Which Events a run makes, and which of them are the same."""

from datetime import timedelta

from finetune_api.names import ConditionType, FailureClass, Phase, Stage
from finetune_api.reasons import Reason
from finetune_api.status import FinetuneStatus
from finetune_operator.attempts import a_failure
from finetune_operator.decide import decide
from finetune_operator.observed import JobState, Observed
from finetune_operator.turns import EVENT_MESSAGE_LENGTH, event_manifest, turns
from finetune_operator.verdict import Turn

from tests.builders import NOON, a_finetune, a_job, a_pod, a_report, a_result, some_settings

PREPARED = a_job(
    Stage.PREPARE, 1, JobState.COMPLETE, a_pod(phase="Succeeded", message=a_result(Stage.PREPARE).to_message())
)
TRAINED = a_job(Stage.TRAIN, 1, JobState.COMPLETE, a_pod(phase="Succeeded", message=a_result(Stage.TRAIN).to_message()))


def running(stage: Stage, scheduled: bool = True) -> Observed:
    job = a_job(stage, 1, JobState.RUNNING, a_pod(phase="Running", started_at=NOON, scheduled=scheduled))
    return Observed(jobs=(job,) if stage is Stage.PREPARE else (PREPARED, job))


def told(*seen: Observed) -> list[str]:
    """The reasons of all Events of a run that was seen like this, pass by pass."""
    status, found = FinetuneStatus(), []
    for number, observed in enumerate(seen):
        now = NOON + timedelta(seconds=number)
        after = decide(a_finetune(status=status), observed, some_settings(), now).status
        found += [turn.reason for turn in turns(status, after)]
        status = after
    return found


def test_the_straight_way_is_told_once_from_its_beginning_to_its_end() -> None:
    publishing = a_report(activity="publishing", progress={"step": 9, "totalSteps": 9})
    train = running(Stage.TRAIN)
    seen = [
        Observed(),
        *[running(Stage.PREPARE)] * 3,
        Observed(jobs=(PREPARED,)),
        *[train] * 3,
        Observed(jobs=train.jobs, report=publishing),
        *[Observed(jobs=(PREPARED, TRAINED))] * 2,
    ]
    assert told(*seen) == [
        Reason.PREPARING,
        Reason.POD_SCHEDULED,
        Reason.ROWS_READY,
        Reason.TRAINING,
        Reason.STEPS_DONE,
        Reason.NO_EVALUATION_ROWS,
        Reason.MANIFEST_WRITTEN,
        Reason.SUCCEEDED,
    ]


def test_a_smaller_attempt_is_told_with_what_made_it_so() -> None:
    failure = a_failure(FailureClass.HOST_OUT_OF_MEMORY, Reason.OOM_KILLED, "the kernel killed it")
    after = FinetuneStatus(failure=failure, memory_rung=1)
    [turn] = turns(FinetuneStatus(), after)
    assert turn == Turn(True, "OOMKilled", "will try with less memory, rung 1: the kernel killed it")


def test_the_same_turn_has_the_same_event_and_any_other_has_another() -> None:
    finetune, later = a_finetune(), NOON + timedelta(minutes=5)
    first = event_manifest(finetune, Turn(False, Reason.SUSPENDED, "words"), NOON)
    again = event_manifest(finetune, Turn(False, Reason.SUSPENDED, "words"), later)
    assert first["metadata"] == again["metadata"]
    others = [Turn(True, Reason.SUSPENDED, "words"), Turn(False, Reason.CANCELLED, "words")]
    others.append(Turn(False, Reason.SUSPENDED, "other words"))
    names = {event_manifest(finetune, turn, NOON)["metadata"]["name"] for turn in others}
    assert len(names - {first["metadata"]["name"]}) == 3


def test_an_event_is_one_short_line_whatever_the_cluster_has_said() -> None:
    message = event_manifest(a_finetune(), Turn(True, Reason.REFUSED, "a\n\x1b[31mb" + "x" * 5000), NOON)["message"]
    assert len(message) <= EVENT_MESSAGE_LENGTH
    assert message.startswith("a [31mb")
    assert message.isprintable()


def test_a_condition_that_only_gets_other_words_is_no_turn() -> None:
    before = decide(a_finetune(), running(Stage.PREPARE), some_settings(), NOON).status
    conditions = [c.model_copy(update={"message": "other words"}) for c in before.conditions]
    after = before.model_copy(update={"conditions": conditions})
    assert {c.type for c in conditions} >= {ConditionType.SCHEDULED}
    assert (list(turns(before, after)), after.phase) == ([], Phase.PREPARING)
