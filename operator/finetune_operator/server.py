"""The operator's own HTTP: progress reports of trainers, probes, metrics.

A report counts only from a pod whose token says that it is one of this run's pods. What is refused changes nothing and
is counted by reason.
"""

import logging
import time
from collections.abc import Callable

from aiohttp import web
from finetune_api import names
from finetune_api.run import ProgressReport
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError

from finetune_operator import metrics
from finetune_operator.cluster import Caller, Cluster, ClusterUnreachable, Key, Refused
from finetune_operator.lease import Leadership
from finetune_operator.reports import ReportBook

log = logging.getLogger(__name__)

VERIFIED_SECONDS = 300
"""How long a verified token is believed without asking the API server again."""

LEAST_SECONDS_BETWEEN_REPORTS = 1
"""A pod that reports more often is told to wait; a final result is always taken."""


LEASE_SILENCE_SECONDS = 60
"""A working operator that has not renewed its Lease for so long is stuck: it should have left by itself."""


class Server:
    """Handlers over the report book. `on_report` is called with the Finetune that a report is about."""

    def __init__(
        self, cluster: Cluster, reports: ReportBook, on_report: Callable[[Key], None], leadership: Leadership
    ) -> None:
        self._cluster = cluster
        self._leadership = leadership
        self._reports = reports
        self._on_report = on_report
        self._verified: dict[str, tuple[float, Caller, dict[str, str]]] = {}
        self._last_report: dict[str, float] = {}
        self.is_ready = False

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(client_max_size=names.REPORT_MAX_BYTES)
        application.router.add_post("/v1/progress", self.progress)
        application.router.add_get("/healthz", self.healthz)
        application.router.add_get("/readyz", self.readyz)
        application.router.add_get("/metrics", self.metrics)
        return application

    async def healthz(self, _: web.Request) -> web.Response:
        """Alive: the event loop runs, and whoever works here has renewed its Lease of late."""
        if self.is_ready and (age := self._leadership.age_seconds) > LEASE_SILENCE_SECONDS:
            return web.Response(status=503, text=f"the Lease was not renewed for {age:.0f} s\n")
        return web.Response(text="ok")

    async def readyz(self, _: web.Request) -> web.Response:
        """Ready: the queue's workers are running."""
        return web.Response(text="ok" if self.is_ready else "starting", status=200 if self.is_ready else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus metrics."""
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def progress(self, request: web.Request) -> web.Response:
        """Take one report."""
        outcome, response = await self._take(request)
        metrics.REPORTS.labels(outcome).inc()
        return response

    async def _take(self, request: web.Request) -> tuple[str, web.Response]:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        try:
            report = ProgressReport.model_validate_json(await request.read())
            verified = await self._verify(token)
        except ValidationError as error:
            return "malformed", _refusal(400, f"the report is malformed: {error.errors()[0]['msg']}")
        except web.HTTPRequestEntityTooLarge:
            return "oversized", _refusal(413, f"a report has at most {names.REPORT_MAX_BYTES} bytes")
        except (ClusterUnreachable, Refused) as error:
            log.warning("a report could not be verified: %s", error)
            return "unverified", _refusal(503, "the token cannot be verified now: try again")
        if verified is None or not _is_about_own_run(report, *verified):
            return "forbidden", _refusal(403, "the token belongs to no pod of this run")
        if not report.result and self._is_too_soon(verified[0]):
            return "throttled", _refusal(429, f"at most one report in {LEAST_SECONDS_BETWEEN_REPORTS} s")
        self._reports.put(report)
        self._on_report(Key(report.identity.namespace, report.identity.name))
        return "accepted", web.Response(status=204)

    async def _verify(self, token: str) -> tuple[Caller, dict[str, str]] | None:
        """Whose pod the token belongs to, and its Job's labels; None for any other token."""
        known = self._verified.get(token)
        if known and known[0] > time.monotonic():
            return known[1], known[2]
        caller = await self._cluster.review_token(token) if token else None
        labels = await self._cluster.job_labels(caller) if caller else None
        if caller is None or labels is None:
            return None
        self._forget_expired()
        self._verified[token] = (time.monotonic() + VERIFIED_SECONDS, caller, labels)
        return caller, labels

    def _forget_expired(self) -> None:
        now = time.monotonic()
        self._verified = {token: entry for token, entry in self._verified.items() if entry[0] > now}
        self._last_report = {uid: at for uid, at in self._last_report.items() if at + VERIFIED_SECONDS > now}

    def _is_too_soon(self, caller: Caller) -> bool:
        now, last = time.monotonic(), self._last_report.get(caller.pod_uid, float("-inf"))
        if now - last < LEAST_SECONDS_BETWEEN_REPORTS:
            return True
        self._last_report[caller.pod_uid] = now
        return False


def _is_about_own_run(report: ProgressReport, caller: Caller, labels: dict[str, str]) -> bool:
    claimed = (report.identity.namespace, report.identity.name, report.identity.uid, report.stage, str(report.attempt))
    return claimed == (
        caller.namespace,
        labels.get(names.LABEL_NAME),
        labels.get(names.LABEL_UID),
        labels.get(names.LABEL_STAGE),
        labels.get(names.LABEL_ATTEMPT),
    )


def _refusal(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n")
