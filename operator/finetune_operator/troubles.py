"""Why pods have not started, in the words of warning Events.

The API server keeps Events without an index: for each question it looks through all those of the namespace, and a
thousand runs that wait for a GPU would ask without end. So whoever's pod says why itself is not asked about, an answer
is kept for a while, and beyond a few questions a second the last answer has to do.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from finetune_operator.allowance import Allowance
from finetune_operator.api_server import ApiServer
from finetune_operator.kueue import workload_names
from finetune_operator.observed import Job, JobState, Observed
from finetune_operator.remembered import Remembered

WAITED = timedelta(seconds=10)
"""A Job whose pods have not started for so long is asked about."""

BELIEVED_SECONDS = 25.0
"""How long an answer is believed before the question is asked again."""

KEPT_SECONDS = 3600.0
"""How long an answer is kept for want of a newer one."""

PER_SECOND, BURST = 5.0, 20
"""Jobs that are asked about: a second, and at once after a while without."""

PODS_ASKED_ABOUT = 4
"""Of one Job: the pods of a gang mostly wait for the same thing."""


class Answer(NamedTuple):
    """The newest warning, if there was one, and when it was asked for, in seconds of the clock."""

    words: str | None
    at: float


class Troubles:
    """The newest warning about each Job that waits."""

    def __init__(self, api: ApiServer, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self._clock = api, clock
        self._allowance = Allowance(PER_SECOND, BURST, clock)
        self._known = Remembered[Answer](KEPT_SECONDS, clock)

    async def told(self, observed: Observed, namespace: str) -> Observed:
        """What was observed; Jobs whose pods have not started for a while with the newest warning about them."""
        return replace(observed, jobs=tuple([await self._told(job, namespace) for job in observed.jobs]))

    async def _told(self, job: Job, namespace: str) -> Job:
        if not _is_late(job) or _says_why(job):
            return job
        answer = self._known.get(job.uid)
        if self._may_ask(answer) and self._allowance.take(None):
            answer = self._known.put(job.uid, Answer(await self._newest(job, namespace), self._clock()))
        return replace(job, trouble=answer.words) if answer else job

    def _may_ask(self, known: Answer | None) -> bool:
        """Whoever has no answer yet comes before those whose answer is old."""
        if known is None:
            return True
        return self._clock() - known.at > BELIEVED_SECONDS and self._allowance.left(None) > BURST / 2

    async def _newest(self, job: Job, namespace: str) -> str | None:
        """The newest warning about the Job or its pods, or about what its queue keeps of it."""
        late = [pod.name for pod in job.pods if pod.started_at is None]
        about = workload_names(job.name, job.uid) if job.is_suspended else [job.name, *late[:PODS_ASKED_ABOUT]]
        queries = [[("fieldSelector", f"involvedObject.name={name},type=Warning")] for name in about]
        path = f"/api/v1/namespaces/{namespace}/events"
        lists = await asyncio.gather(*(self._api.get_items(path, query) for query in queries))
        events = [event for found in lists for event in found]
        newest = max(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime")), default=None)
        return None if newest is None else _words_of(newest)


def _is_late(job: Job) -> bool:
    age = datetime.now(UTC) - job.created_at if job.created_at else timedelta(0)
    return job.state is JobState.RUNNING and not job.has_started and age >= WAITED


def _says_why(job: Job) -> bool:
    """Whether each of its pods that has not started says more than that it waits."""
    late = [pod for pod in job.pods if pod.started_at is None]
    return len(job.pods) >= job.size and all(pod.says_why for pod in late)


def _words_of(event: Mapping[str, Any]) -> str:
    """Reason and message of a warning Event; whoever recorded it may have left out either."""
    return f"{event.get('reason', 'Warning')}: {event.get('message', '')}".rstrip(": ")
