"""The running operator: workers over the queue, the resync, the HTTP server; started and stopped by `handlers.py`."""

import asyncio
import logging
import platform
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import REGISTRY

from finetune_operator import metrics
from finetune_operator.api_server import ApiServer, ClusterUnreachable, Conflict, Refused
from finetune_operator.callers import Callers
from finetune_operator.cluster import Cluster, Key
from finetune_operator.fleet import Fleet
from finetune_operator.heartbeat import Heartbeat
from finetune_operator.lease import Leadership, Lease
from finetune_operator.metrics import PassOutcome
from finetune_operator.mirror import Mirror
from finetune_operator.reconcile import Reconciler
from finetune_operator.reports import ReportBook
from finetune_operator.senders import Senders
from finetune_operator.server import Server
from finetune_operator.settings import Settings
from finetune_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

WORKERS = 8
"""Finetunes that are worked on at the same time."""

RESYNC_RETRY_SECONDS = 5.0
"""Wait after a resync that failed."""


LISTEN_AGAIN_SECONDS = 2.0
"""Wait before a watch of the own Lease is begun anew."""


class Operator:
    """Everything that lives as long as the process."""

    def __init__(self, api: ApiServer, settings: Settings, leave: Callable[[], None]) -> None:
        """`leave` is called when another operator may have taken over: the process has to end."""
        self.queue: WorkQueue[Key] = WorkQueue()
        self.reports = ReportBook()
        self.fleet = Fleet()
        self.mirror = Mirror(settings.namespaces, self.queue.add)
        self._api = api
        self._cluster = Cluster(api)
        self._reconciler = Reconciler(self._cluster, self.mirror, self.reports, settings)
        self._settings = settings
        self._lease = Lease(api, settings.lease_namespace, settings.lease_name)
        self._leadership = Leadership(self._lease, f"{platform.node()}_{uuid.uuid4()}", self._stop_working)
        self._leave = leave
        self._heartbeat = Heartbeat()
        self._server = Server(Senders(Callers(api)), self.reports, self.queue.add, self._heartbeat)
        self._runner = web.AppRunner(self._server.application(), access_log=None)
        self._tasks: list[asyncio.Task[None]] = []
        self._lag: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start serving, and working once no other operator does."""
        await self._runner.setup()
        await web.TCPSite(self._runner, port=self._settings.listen_port).start()
        self._lag = asyncio.create_task(self._heartbeat.measure(), name="lag")
        await self._leadership.acquire()
        self._tasks = [asyncio.create_task(self._work(), name=f"worker-{number}") for number in range(WORKERS)]
        self._tasks.append(asyncio.create_task(self._resync(), name="resync"))
        follow = self.mirror.follow(self._api, self._settings.resync_seconds)
        self._tasks.append(asyncio.create_task(follow, name="mirror"))
        self._tasks.append(asyncio.create_task(self._listen(), name="heartbeat"))
        self._server.is_ready = True
        metrics.LEADER.set(1)
        metrics.HEARTBEAT_AGE.set_function(lambda: self._heartbeat.silence_seconds)
        metrics.LOOP_LAG.set_function(lambda: self._heartbeat.largest_lag_seconds)
        metrics.QUEUE_LENGTH.set_function(lambda: len(self.queue))
        metrics.RETRYING.set_function(lambda: self.queue.failing)
        REGISTRY.register(self.fleet)

    def finetune_changed(self, key: Key, body: Mapping[str, Any], *, is_gone: bool) -> None:
        """The API server has told of a Finetune, or of its end."""
        if is_gone:
            self.reports.forget(body["metadata"]["uid"])
            self.fleet.forget(key)
            self.mirror.forget(key)
        else:
            self.fleet.note(key, body)
            self.mirror.note(key, body)
        self.queue.add(key)

    async def stop(self) -> None:
        """Stop working; what was begun is finished by the next process, from the status."""
        self._cancel_work()
        tasks = [*self._tasks, *([self._lag] if self._lag else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._leadership.release()
        await self._runner.cleanup()
        await self._api.close()

    def _stop_working(self) -> None:
        """Another operator may work from now on: not one more write from here."""
        self._cancel_work()
        self._leave()

    def _cancel_work(self) -> None:
        self._server.is_ready = False
        metrics.LEADER.set(0)
        for task in self._tasks:
            task.cancel()

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                await self._pass(key)
            finally:
                self.queue.done(key)

    async def _pass(self, key: Key) -> None:
        """One pass, with what is known to go wrong; a bug must not take the worker with it."""
        try:
            with metrics.PASS_SECONDS.time():
                check_again = await self._reconciler.reconcile(key)
        except Conflict:
            metrics.PASSES.labels(PassOutcome.CONFLICT).inc()
            self.queue.retry(key)
        except ClusterUnreachable as error:
            metrics.PASSES.labels(PassOutcome.UNREACHABLE).inc()
            wait = self.queue.retry(key, at_least=error.retry_after_seconds)
            log.warning("%s/%s: %s; again in %.1f s", *key, error, wait)
        except Refused as error:
            metrics.PASSES.labels(PassOutcome.REFUSED).inc()
            log.warning("%s/%s: %s; again in %.1f s", *key, error, self.queue.retry(key))
        except Exception:
            metrics.PASSES.labels(PassOutcome.BUG).inc()
            log.exception("%s/%s: this is a bug in the operator; again in %.1f s", *key, self.queue.retry(key))
        else:
            metrics.PASSES.labels(PassOutcome.OK).inc()
            self.queue.succeeded(key)
            if check_again:
                self.queue.add_after(key, check_again.total_seconds())

    async def _listen(self) -> None:
        """Hear each renewal of the own Lease: while it is heard, watches work."""
        self._heartbeat.beat()
        while True:
            try:
                async for _ in self._lease.changes():
                    self._heartbeat.beat()
            except (ClusterUnreachable, Refused) as error:
                log.warning("the watch of the own Lease ended: %s", error)
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

    async def _resync(self) -> None:
        """Look at everything now and then: an event that was missed delays a run, and never loses it."""
        while True:
            wait = self._settings.resync_seconds
            try:
                versions = await self._cluster.list_versions(self._settings.namespaces)
                self.mirror.keep(versions)
                self.fleet.keep(versions)
                for key in versions:
                    self.queue.add(key)
            except ClusterUnreachable as error:
                wait = max(min(wait, RESYNC_RETRY_SECONDS), error.retry_after_seconds)
                log.warning("the resync failed: %s; again in %.0f s", error, wait)
            except Refused as error:
                wait = min(wait, RESYNC_RETRY_SECONDS)
                log.warning("the resync failed: %s; again in %.0f s", error, wait)
            except Exception:
                log.exception("the resync failed: this is a bug in the operator; again in %.0f s", wait)
            await asyncio.sleep(wait)
