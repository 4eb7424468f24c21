"""The operator's own HTTP, with an API server that knows two tokens: what is taken, and what refusing costs."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from finetune_api import names
from finetune_api.names import Stage
from finetune_operator import server as http
from finetune_operator.api_server import ClusterUnreachable
from finetune_operator.callers import Caller, Callers
from finetune_operator.cluster import Key
from finetune_operator.heartbeat import LAG_SECONDS, SILENCE_SECONDS, Heartbeat
from finetune_operator.metrics import REPORTS, ReportOutcome
from finetune_operator.reports import ReportBook
from finetune_operator.senders import BAD_TOKENS_AT_ONCE, REFUSED_SECONDS, REVIEWS, Senders

from tests.builders import UID, a_failure_message


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class KnownTokens(Callers):
    """An API server that knows two pods, and counts how often it is asked."""

    def __init__(self) -> None:
        self.reviews: Counter[str] = Counter()
        self.is_down = False

    async def review_token(self, token: str) -> Caller | None:
        self.reviews[token] += 1
        await asyncio.sleep(0)  # As every request, it lets others go on meanwhile.
        if self.is_down:
            raise ClusterUnreachable("the API server is down")
        namespace = {"good": "team-a", "foreign": "team-b"}.get(token)
        return Caller(namespace, f"{token}-pod", f"{token}-uid") if namespace else None

    async def job_labels(self, caller: Caller) -> dict[str, str] | None:
        return {names.LABEL_NAME: "story", names.LABEL_UID: UID, names.LABEL_STAGE: "train", names.LABEL_ATTEMPT: "2"}


@dataclass
class Desk:
    """The server, what it has taken, and the world around it."""

    client: TestClient[Any, Any]
    callers: KnownTokens
    book: ReportBook
    clock: Clock
    heartbeat: Heartbeat
    woken: list[Key] = field(default_factory=list)

    async def post(self, body: Mapping[str, Any] | bytes, token: str = "good", path: str = names.REPORT_PATH) -> int:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.post(path, data=data, headers={"Authorization": f"Bearer {token}"}) as answer:
            return answer.status

    @property
    def step(self) -> int | None:
        """The step of the newest report that was taken."""
        newest = self.book.newest(UID)
        return newest.body.progress.step if newest and newest.body.progress else None


@asynccontextmanager
async def a_desk() -> AsyncIterator[Desk]:
    clock, callers, book = Clock(), KnownTokens(), ReportBook()
    woken: list[Key] = []
    heartbeat = Heartbeat(clock)
    server = http.Server(Senders(callers, clock), book, woken.append, heartbeat, clock)
    async with TestClient(TestServer(server.application())) as client:
        yield Desk(client, callers, book, clock, heartbeat, woken)


def a_report(sequence: int = 1, step: int = 7, **changes: Any) -> dict[str, Any]:
    identity = {"namespace": "team-a", "name": "story", "uid": UID}
    body = {"identity": identity, "stage": "train", "attempt": 2, "activity": "training", "sequence": sequence}
    return body | {"progress": {"step": step, "totalSteps": 9}} | changes


def counted(outcome: ReportOutcome) -> float:
    return float(REPORTS.labels(outcome)._value.get())


FORGED: dict[str, tuple[dict[str, Any] | bytes, str, ReportOutcome]] = {
    "a token that nobody made": (a_report(2, 8), "forged", ReportOutcome.FORBIDDEN),
    "no token": (a_report(2, 8), "", ReportOutcome.FORBIDDEN),
    "a pod of another namespace": (a_report(2, 8), "foreign", ReportOutcome.FORBIDDEN),
    "another run": (
        a_report(2, 8, identity={"namespace": "team-a", "name": "other", "uid": "other"}), "good",
        ReportOutcome.FORBIDDEN,
    ),
    "another attempt": (a_report(2, 8, attempt=1), "good", ReportOutcome.FORBIDDEN),
    "another stage": (a_report(2, 8, stage="prepare"), "good", ReportOutcome.FORBIDDEN),
    "the same report again": (a_report(1, 7), "good", ReportOutcome.STALE),
    "no JSON": (b"{", "good", ReportOutcome.MALFORMED),
    "no number": (a_report(2, 8, metrics={"trainingLoss": float("nan")}), "good", ReportOutcome.MALFORMED),
    "too much": (a_report(2, 8, pad="x" * names.REPORT_MAX_BYTES), "good", ReportOutcome.OVERSIZED),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
async def test_a_report_that_is_not_the_runs_own_changes_nothing_and_is_counted(case: str) -> None:
    body, token, outcome = FORGED[case]
    async with a_desk() as desk:
        assert await desk.post(a_report()) == 204
        desk.clock.now += 5
        before, woken = counted(outcome), list(desk.woken)
        assert await desk.post(body, token) == http.HTTP_STATUS[outcome]
        assert counted(outcome) == before + 1
        assert (desk.step, desk.woken) == (7, woken)


async def test_a_late_report_does_not_replace_a_later_one() -> None:
    async with a_desk() as desk:
        assert await desk.post(a_report(sequence=2, step=8)) == 204
        desk.clock.now += 5
        assert await desk.post(a_report(sequence=1, step=7)) == 409
        assert desk.step == 8


async def test_a_straggler_does_not_replace_the_result() -> None:
    result = json.loads(a_failure_message(Stage.TRAIN, "Diverged", "LossNotFinite"))
    async with a_desk() as desk:
        assert await desk.post(a_report(sequence=1, step=8, result=result)) == 204
        desk.clock.now += 5
        assert await desk.post(a_report(sequence=2, step=9)) == 409
        assert desk.step == 8


async def test_a_pod_that_reports_too_often_is_told_to_wait_but_its_result_is_always_taken() -> None:
    result = json.loads(a_failure_message(Stage.TRAIN, "Diverged", "LossNotFinite"))
    async with a_desk() as desk:
        assert await desk.post(a_report(1)) == 204
        assert await desk.post(a_report(2, 8)) == 429
        assert await desk.post(a_report(3, 9, result=result)) == 204
        assert desk.step == 9


async def test_a_flood_of_one_pod_is_not_even_read() -> None:
    async with a_desk() as desk:
        answers = Counter([await desk.post(b"{") for _ in range(3 * http.REQUESTS_AT_ONCE)])
        assert answers == {400: http.REQUESTS_AT_ONCE, 429: 2 * http.REQUESTS_AT_ONCE}
        assert desk.callers.reviews == {"good": 1}
        desk.clock.now += 60
        assert await desk.post(a_report()) == 204


async def test_a_bad_token_is_asked_about_once() -> None:
    async with a_desk() as desk:
        assert [await desk.post(a_report(), "forged") for _ in range(30)] == [403] * 30
        assert desk.callers.reviews == {"forged": 1}
        desk.clock.now += REFUSED_SECONDS + 1
        assert await desk.post(a_report(), "forged") == 403
        assert desk.callers.reviews == {"forged": 2}


async def test_a_flood_of_bad_tokens_does_not_reach_the_api_server_nor_those_who_are_known() -> None:
    async with a_desk() as desk:
        assert await desk.post(a_report(1)) == 204
        answers = Counter([await desk.post(a_report(), f"forged-{number}") for number in range(100)])
        assert answers == {403: BAD_TOKENS_AT_ONCE, 429: 100 - BAD_TOKENS_AT_ONCE}
        assert sum(desk.callers.reviews.values()) == 1 + BAD_TOKENS_AT_ONCE
        desk.clock.now += 5
        assert await desk.post(a_report(2, 8)) == 204


async def test_many_reports_with_one_token_at_once_ask_about_it_once() -> None:
    async with a_desk() as desk:
        answers = await asyncio.gather(*(desk.post(a_report(number)) for number in range(1, 16)))
        assert desk.callers.reviews == {"good": 1}
        assert Counter(answers) == {204: 1, 429: 14}


async def test_many_bad_tokens_at_once_are_no_more_requests_than_one_after_the_other() -> None:
    async with a_desk() as desk:
        answers = await asyncio.gather(*(desk.post(a_report(), f"forged-{number}") for number in range(90)))
        assert sum(desk.callers.reviews.values()) <= BAD_TOKENS_AT_ONCE + REVIEWS
        assert Counter(answers)[429] >= 90 - BAD_TOKENS_AT_ONCE - REVIEWS


async def test_while_the_api_server_is_down_a_token_that_is_not_known_yet_has_to_wait() -> None:
    async with a_desk() as desk:
        desk.callers.is_down = True
        assert await desk.post(a_report()) == 503
        assert desk.step is None
        desk.callers.is_down = False
        assert await desk.post(a_report()) == 204


def in_kubeflows_words(second: int, percent: int, **metrics: str) -> dict[str, Any]:
    readings = [{"name": name, "value": value} for name, value in metrics.items()]
    updated = f"2026-01-01T12:00:{second:02}.5+00:00"
    return {"trainerStatus": {"lastUpdatedTime": updated, "progressPercentage": percent, "metrics": readings}}


async def test_kubeflows_words_are_taken_in_their_order_and_the_last_ones_at_any_time() -> None:
    async with a_desk() as desk:

        async def tell(second: int, percent: int, **metrics: str) -> int:
            return await desk.post(in_kubeflows_words(second, percent, **metrics), path=names.KUBEFLOW_PATH)

        assert await tell(1, 0, total_steps="40") == 200
        desk.clock.now += 5
        assert await tell(9, 25, current_step="10", total_steps="40", loss="2.5", grad_norm="nan", note="warm") == 200
        assert await tell(10, 27, current_step="11") == 429
        desk.clock.now += 5
        assert await tell(9, 99, current_step="39") == 409
        assert await tell(11, 101) == 400
        nowhen = {"lastUpdatedTime": "0001-01-01T00:00:00", "progressPercentage": 1, "metrics": []}
        assert await desk.post({"trainerStatus": nowhen}, path=names.KUBEFLOW_PATH) == 400
        newest = desk.book.newest(UID)
        assert newest is not None
        assert newest.body.progress is not None
        assert newest.body.metrics is not None
        assert (newest.body.progress.percent, newest.body.progress.total_steps, desk.step) == (25, 40, 10)
        assert (newest.body.metrics.training_loss, newest.body.metrics.grad_norm) == (2.5, None)
        desk.clock.now += 5
        assert await tell(12, 50, current_step="1e300") == 200
        assert desk.step == 10, "no step of a training is so large"
        assert await tell(13, 100) == 200
        assert desk.step == 40


async def test_kubeflows_words_need_a_token_too() -> None:
    async with a_desk() as desk:
        assert await desk.post(in_kubeflows_words(1, 0), "forged", names.KUBEFLOW_PATH) == 403
        assert await desk.post(in_kubeflows_words(1, 0), "", names.KUBEFLOW_PATH) == 403


async def healthz(desk: Desk) -> tuple[int, str]:
    async with desk.client.get("/healthz") as answer:
        return answer.status, await answer.text()


async def test_an_operator_that_hears_nothing_for_too_long_is_not_alive() -> None:
    async with a_desk() as desk:
        desk.heartbeat.beat()
        desk.clock.now += LAG_SECONDS / 2
        assert await healthz(desk) == (200, "ok\n")
        desk.clock.now += SILENCE_SECONDS
        status, text = await healthz(desk)
        assert status == 503
        assert text.startswith("the watch of the own Lease has told nothing for")


async def test_an_event_loop_that_is_late_is_not_alive() -> None:
    async with a_desk() as desk:
        desk.clock.now += LAG_SECONDS + 2
        status, text = await healthz(desk)
        assert (status, text) == (503, "the event loop is 6 s late; 5 are allowed\n")


async def test_two_reports_in_one_second_are_two() -> None:
    async with a_desk() as desk:
        times = []
        for second, percent in ((1, 0), (2, 100)):
            assert await desk.post(in_kubeflows_words(second, percent), path=names.KUBEFLOW_PATH) == 200
            newest = desk.book.newest(UID)
            assert newest is not None
            times.append(newest.received_at)
        assert times[0] < times[1], "the last one would be taken for the one that stands in the status"
