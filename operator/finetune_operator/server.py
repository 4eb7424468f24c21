"""The operator's own HTTP: progress reports of trainers, probes, metrics.

A report counts only from a pod whose token says that it is one of this run's pods. What is refused changes nothing and
is counted by reason; it is refused as early, and as cheaply, as can be.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TypeAlias

from aiohttp import web
from finetune_api import names
from finetune_api.run import ProgressReport
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError

from finetune_operator import kubeflow, metrics
from finetune_operator.allowance import Allowance
from finetune_operator.api_server import ClusterUnreachable, Refused
from finetune_operator.cluster import Key
from finetune_operator.heartbeat import Heartbeat
from finetune_operator.metrics import ReportOutcome
from finetune_operator.reports import Place, ReportBook
from finetune_operator.senders import Sender, Senders, TooManyUnknown

log = logging.getLogger(__name__)

REPORTS_PER_SECOND = 1.0
"""A pod that reports more often is told to wait; its last word is always taken."""

REQUESTS_PER_SECOND = 5.0
REQUESTS_AT_ONCE = 20
"""How many requests of one pod are looked into at all."""

BODY_SECONDS = 10.0
"""How long a pod may take to send a report."""

HTTP_STATUS = {
    ReportOutcome.MALFORMED: 400,
    ReportOutcome.FORBIDDEN: 403,
    ReportOutcome.STALE: 409,
    ReportOutcome.OVERSIZED: 413,
    ReportOutcome.THROTTLED: 429,
    ReportOutcome.UNVERIFIED: 503,
}

Read: TypeAlias = Callable[[bytes, Sender], tuple[ProgressReport, Place, bool]]
"""Bytes to a report, its place among those of its pod, and whether it is the last. Raises ValidationError."""


class ReportRefused(Exception):
    """The report is not taken."""

    def __init__(self, outcome: ReportOutcome, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


class Server:
    """Handlers over the report book. `on_report` is called with the Finetune that a report is about."""

    def __init__(
        self,
        senders: Senders,
        reports: ReportBook,
        on_report: Callable[[Key], None],
        heartbeat: Heartbeat,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._senders = senders
        self._heartbeat = heartbeat
        self._reports = reports
        self._on_report = on_report
        self._requests = Allowance(REQUESTS_PER_SECOND, REQUESTS_AT_ONCE, clock)
        self._pace = Allowance(REPORTS_PER_SECOND, 1, clock)
        self.is_ready = False

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(client_max_size=names.REPORT_MAX_BYTES)
        application.router.add_post(names.REPORT_PATH, self.progress)
        application.router.add_post(names.KUBEFLOW_PATH, self.kubeflow)
        application.router.add_get("/healthz", self.healthz)
        application.router.add_get("/readyz", self.readyz)
        application.router.add_get("/metrics", self.prometheus)
        return application

    async def healthz(self, _: web.Request) -> web.Response:
        """Alive: this process hears the API server, and its event loop is in time."""
        trouble = self._heartbeat.trouble()
        return web.Response(status=503, text=f"{trouble}\n") if trouble else web.Response(text="ok\n")

    async def readyz(self, _: web.Request) -> web.Response:
        """Ready: the queue's workers are running."""
        return web.Response(text="ok\n") if self.is_ready else web.Response(text="starting\n", status=503)

    async def prometheus(self, _: web.Request) -> web.Response:
        """Prometheus metrics."""
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def progress(self, request: web.Request) -> web.Response:
        """Take one report in our own words."""
        return await self._answer(request, _own, taken=204)

    async def kubeflow(self, request: web.Request) -> web.Response:
        """Take one report in Kubeflow's words, whose client takes no other answer than 200 for success."""
        return await self._answer(request, self._kubeflow, taken=200)

    async def _answer(self, request: web.Request, read: Read, taken: int) -> web.Response:
        outcome, response = ReportOutcome.ACCEPTED, web.Response(status=taken)
        try:
            await self._take(request, read)
        except ReportRefused as refusal:
            outcome = refusal.outcome
            response = web.Response(status=HTTP_STATUS[outcome], text=f"{refusal}\n")
            if outcome is ReportOutcome.THROTTLED:
                response.headers["Retry-After"] = "1"
        metrics.REPORTS.labels(outcome).inc()
        return response

    async def _take(self, request: web.Request, read: Read) -> None:
        """Take the report, if everything about it is right. Raises ReportRefused."""
        sender = await self._sender(request)
        if not self._requests.take(sender.pod_uid):
            raise ReportRefused(ReportOutcome.THROTTLED, f"at most {REQUESTS_PER_SECOND:.0f} requests in a second")
        report, place, is_last = _parsed(read, await _body(request), sender)
        if (report.identity, report.stage, report.attempt) != (sender.identity, sender.stage, sender.attempt):
            raise ReportRefused(ReportOutcome.FORBIDDEN, "the token belongs to another run or attempt")
        if not is_last and not self._pace.take(sender.pod_uid):
            raise ReportRefused(ReportOutcome.THROTTLED, f"at most {REPORTS_PER_SECOND:.0f} report in a second")
        if not self._reports.put(report, place):
            raise ReportRefused(ReportOutcome.STALE, "a later report has been taken already")
        self._on_report(Key(report.identity.namespace, report.identity.name))

    async def _sender(self, request: web.Request) -> Sender:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        try:
            sender = await self._senders.sender(token, request.remote or "")
        except (ClusterUnreachable, Refused) as error:
            log.warning("a report could not be verified: %s", error)
            raise ReportRefused(ReportOutcome.UNVERIFIED, "the token cannot be verified now: try again") from error
        except TooManyUnknown as error:
            text = "too many tokens are unknown, or those from here belonged to nobody: wait"
            raise ReportRefused(ReportOutcome.THROTTLED, text) from error
        if sender is None:
            raise ReportRefused(ReportOutcome.FORBIDDEN, "the token belongs to no pod of a run")
        return sender

    def _kubeflow(self, body: bytes, sender: Sender) -> tuple[ProgressReport, Place, bool]:
        said = kubeflow.KubeflowReport.model_validate_json(body).trainer_status
        newest = self._reports.newest(sender.identity.uid)
        is_same = newest and (newest.body.stage, newest.body.attempt) == (sender.stage, sender.attempt)
        report = kubeflow.as_report(said, sender, newest.body if newest and is_same else None)
        place = Place(f"{sender.pod_uid} kubeflow", said.last_updated_time.timestamp())
        return report, place, said.progress_percentage == kubeflow.DONE


def _own(body: bytes, sender: Sender) -> tuple[ProgressReport, Place, bool]:
    report = ProgressReport.model_validate_json(body)
    return report, Place(sender.pod_uid, report.sequence), report.result is not None


def _parsed(read: Read, body: bytes, sender: Sender) -> tuple[ProgressReport, Place, bool]:
    try:
        return read(body, sender)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ReportRefused(ReportOutcome.MALFORMED, f"the report is malformed: {where}: {first['msg']}") from error


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        text = f"a report has at most {names.REPORT_MAX_BYTES} bytes"
        raise ReportRefused(ReportOutcome.OVERSIZED, text) from error
    except TimeoutError as error:
        text = f"the report did not come within {BODY_SECONDS:.0f} s"
        raise ReportRefused(ReportOutcome.MALFORMED, text) from error
