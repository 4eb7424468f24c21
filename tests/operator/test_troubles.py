"""Why pods do not start, asked of the API server seldom enough that a thousand runs may wait for a GPU."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from finetune_api.names import Stage
from finetune_operator.api_server import ApiServer
from finetune_operator.observed import Job, JobState, Observed, Pod
from finetune_operator.troubles import BELIEVED_SECONDS, BURST, PER_SECOND, Troubles

from tests.builders import a_job, a_pod


class Events:
    """An API server that answers each question with the next list of Events, the last one for ever."""

    def __init__(self, *answers: dict[str, str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def get_items(self, path: str, query: list[tuple[str, str]]) -> list[dict[str, Any]]:
        self.asked.append(query[0][1])
        return [dict(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])]


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def some_troubles(events: Events) -> tuple[Troubles, Clock]:
    clock = Clock()
    return Troubles(cast(ApiServer, events), clock), clock


def waiting(*pods: Pod, name: str = "job", minutes: int = 1) -> Job:
    made = datetime.now(UTC) - timedelta(minutes=minutes)
    return replace(a_job(Stage.TRAIN, 1, JobState.RUNNING, *pods), name=name, uid=name, created_at=made)


async def words(troubles: Troubles, job: Job) -> str | None:
    return (await troubles.told(Observed(jobs=(job,)), "team-a")).jobs[0].trouble


async def test_an_event_without_words_holds_nothing_up() -> None:
    for event, told in (({"reason": "FailedCreate"}, "FailedCreate"), ({}, "Warning")):
        troubles, _ = some_troubles(Events(event))
        assert await words(troubles, waiting()) == told


async def test_an_answer_is_believed_for_a_while_and_asked_for_again_then() -> None:
    events = Events({"reason": "FailedMount"}, {"reason": "FailedCreate"})
    troubles, clock = some_troubles(events)
    assert [await words(troubles, waiting()) for _ in range(3)] == ["FailedMount"] * 3
    clock.now += BELIEVED_SECONDS + 1
    assert await words(troubles, waiting()) == "FailedCreate"
    assert len(events.asked) == 2


async def test_a_thousand_that_wait_ask_a_few_questions_a_second_and_keep_the_last_answer() -> None:
    events = Events({"reason": "FailedMount"})
    troubles, clock = some_troubles(events)
    for _ in range(60):
        clock.now += 1
        told = [await words(troubles, waiting(name=f"job-{number}")) for number in range(200)]
    assert len(events.asked) <= BURST + 60 * PER_SECOND
    assert told == ["FailedMount"] * 200, "whoever had to wait for its turn has forgotten why"


async def test_a_pod_that_says_why_is_not_asked_about() -> None:
    events = Events({"reason": "FailedMount"})
    troubles, _ = some_troubles(events)
    told, silent = a_pod(waiting="Unschedulable: 0/3 nodes"), a_pod(waiting="ContainerCreating")
    assert await words(troubles, waiting(told)) is None
    assert await words(troubles, waiting(told, minutes=0)) is None
    assert events.asked == []
    assert await words(troubles, waiting(silent)) == "FailedMount"
    assert await words(troubles, replace(waiting(told, name="gang"), size=2)) == "FailedMount", "one pod is missing"
