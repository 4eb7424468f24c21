"""Every kopf decorator. kopf watches Finetunes; each event only says which one to look at.

Only `on.event` is used: kopf's other handlers keep state in annotations and put finalizers on objects, and would do so
on every Finetune. Jobs and pods are watched by `mirror.py`: kopf has no label selectors that the API server applies, so
that it would be sent every pod of the cluster.
"""

from collections.abc import Callable
from typing import Any

import kopf
from finetune_api import names

from finetune_operator.api_server import connect
from finetune_operator.cluster import Key
from finetune_operator.runtime import Operator
from finetune_operator.settings import Settings

WATCH_SECONDS = 300
"""A watch is made anew this often, so that one that has silently died is replaced."""

PAGE = 250
"""Objects that are listed at a time: thousands in one answer would be hundreds of MiB for a moment."""

IDLE_SECONDS = 0.1
"""How long kopf keeps an object and a task for the next event of a Finetune after it has told us of one."""

LIST_SECONDS = 60
"""Longest that kopf may take to list objects; what does not answer by then has silently died."""

WATCH_RETRY_SECONDS = (1, 1, 2, 3, 5, *[8] * 24)
"""Waits before kopf asks again for what it watches. All together they are longer than an API server needs to come
back (`heartbeat.SILENCE_SECONDS`); after the last one kopf ends, and with it the process."""


class NothingKept(kopf.DiffBaseStorage):
    """No last-handled state. kopf would make two deep copies of every object of every event to compare with it, which
    takes longer than all that we do then, for kinds of handlers that we do not have."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        """Nothing."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> None:
        """Nothing."""

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nowhere."""


def register(settings: Settings, leave: Callable[[], None]) -> kopf.OperatorRegistry:
    """A registry with our handlers, bound to these settings; `leave` ends the process."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry, id="login")
    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)

    @kopf.on.startup(registry=registry, id="start")
    async def start(*, memo: Any, settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False  # Events are ours, told as turns of the run's story.
        settings.persistence.diffbase_storage = NothingKept()
        settings.watching.server_timeout = WATCH_SECONDS
        settings.watching.chunk_size = PAGE
        settings.queueing.idle_timeout = IDLE_SECONDS
        settings.networking.request_timeout = LIST_SECONDS
        settings.networking.error_backoffs = WATCH_RETRY_SECONDS
        memo.operator = Operator(await connect(), own_settings, leave)
        await memo.operator.start()

    @kopf.on.cleanup(registry=registry, id="stop")
    async def stop(*, memo: Any, **_: Any) -> None:
        if "operator" in memo:
            await memo.operator.stop()

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry, id="finetune")
    async def finetune_changed(*, memo: Any, event: Any, namespace: str | None, name: str, **_: Any) -> None:
        memo.operator.finetune_changed(Key(namespace or "", name), event["object"], is_gone=event["type"] == "DELETED")

    own_settings = settings
    return registry
