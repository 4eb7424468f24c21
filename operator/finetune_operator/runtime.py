"""The running operator: workers over the queue, the resync, the HTTP server; started and stopped by `handlers.py`."""

import asyncio
import logging
import platform
import uuid
from collections.abc import Callable

from aiohttp import web

from finetune_operator import metrics
from finetune_operator.cluster import Cluster, ClusterUnreachable, Conflict, Key, Refused
from finetune_operator.lease import Leadership
from finetune_operator.reconcile import reconcile
from finetune_operator.reports import ReportBook
from finetune_operator.server import Server
from finetune_operator.settings import Settings
from finetune_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

WORKERS = 8
"""Finetunes that are worked on at the same time."""

RESYNC_RETRY_SECONDS = 5.0
"""Wait after a resync that failed."""


class Operator:
    """Everything that lives as long as the process."""

    def __init__(self, cluster: Cluster, settings: Settings, leave: Callable[[], None]) -> None:
        """`leave` is called when another operator may have taken over: the process has to end."""
        self.queue: WorkQueue[Key] = WorkQueue()
        self.reports = ReportBook()
        self._cluster = cluster
        self._settings = settings
        identity = f"{platform.node()}_{uuid.uuid4()}"
        self._leave = leave
        self._leadership = Leadership(
            cluster, settings.lease_namespace, settings.lease_name, identity, self._stop_working
        )
        self._server = Server(cluster, self.reports, self.queue.add, self._leadership)
        self._runner = web.AppRunner(self._server.application(), access_log=None)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start serving, and working once no other operator does."""
        await self._runner.setup()
        await web.TCPSite(self._runner, port=self._settings.listen_port).start()
        await self._leadership.acquire()
        self._tasks = [asyncio.create_task(self._work(), name=f"worker-{number}") for number in range(WORKERS)]
        self._tasks.append(asyncio.create_task(self._resync(), name="resync"))
        self._server.is_ready = True

    async def stop(self) -> None:
        """Stop working; what was begun is finished by the next process, from the status."""
        self._cancel_work()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._leadership.release()
        await self._runner.cleanup()
        await self._cluster.close()

    def _stop_working(self) -> None:
        """Another operator may work from now on: not one more write from here."""
        self._cancel_work()
        self._leave()

    def _cancel_work(self) -> None:
        self._server.is_ready = False
        for task in self._tasks:
            task.cancel()

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            metrics.QUEUE_LENGTH.set(len(self.queue))
            try:
                await self._pass(key)
            finally:
                self.queue.done(key)

    async def _pass(self, key: Key) -> None:
        """One pass, with what is known to go wrong; a bug must not take the worker with it."""
        try:
            with metrics.RECONCILE_SECONDS.time():
                check_again = await reconcile(key, self._cluster, self.reports, self._settings)
        except Conflict:
            metrics.RECONCILES.labels("conflict").inc()
            self.queue.add(key)
        except (ClusterUnreachable, Refused) as error:
            metrics.RECONCILES.labels(type(error).__name__).inc()
            log.warning("%s/%s: %s; again in %.1f s", *key, error, self.queue.retry(key))
        except Exception:
            metrics.RECONCILES.labels("error").inc()
            log.exception("%s/%s: this is a bug in the operator; again in %.1f s", *key, self.queue.retry(key))
        else:
            metrics.RECONCILES.labels("ok").inc()
            self.queue.succeeded(key)
            if check_again:
                self.queue.add_after(key, check_again.total_seconds())

    async def _resync(self) -> None:
        """Look at everything now and then: an event that was missed delays a run, and never loses it."""
        while True:
            wait = self._settings.resync_seconds
            try:
                for key in await self._cluster.list_keys(self._settings.namespaces):
                    self.queue.add(key)
            except (ClusterUnreachable, Refused) as error:
                wait = min(wait, RESYNC_RETRY_SECONDS)
                log.warning("the resync failed: %s; again in %.0f s", error, wait)
            await asyncio.sleep(wait)
