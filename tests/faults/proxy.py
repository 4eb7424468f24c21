"""A proxy between operators and the API server, that does to their requests what a plan says.

Plans go by namespace: an operator that watches one namespace, and has its Lease there, meets only the plan of that one.
Requests that name no namespace (discovery at the start, nodes) pass untouched.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web
from finetune_api import names

from tests.faults.api import Api

KEPT_HEADERS = ("Accept", "Content-Type")
GROUPS = ("batch", names.GROUP)


@dataclass(frozen=True)
class Call:
    """A request of an operator."""

    method: str
    path: str
    body: bytes
    is_watch: bool

    @property
    def is_write(self) -> bool:
        """True for what changes a run. The Lease is renewed all the time."""
        return self.method != "GET" and "/leases" not in self.path


@dataclass(frozen=True)
class Answer:
    """What the API server says, or is made to say."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class HungUp(Exception):
    """The connection breaks: at once, or in the middle of this answer."""

    answer: Answer | None = None


@dataclass(frozen=True)
class Entry:
    """A write, and what became of it; no status where the API server never saw it."""

    method: str
    path: str
    name: str
    status: int | None


class Plan:
    """What happens to the requests of one namespace: nothing."""

    def __init__(self) -> None:
        self.ended_at = time.monotonic()
        """When the last fault was over; for one that lasts, when it began."""
        self.ledger: list[Entry] = []
        self.streams: set[asyncio.Transport] = set()
        """Connections of the watches."""

    async def meet(self, call: Call, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer to a request, which `ask` passes on. Raises HungUp."""
        return await ask()

    async def open_watch(self, call: Call) -> Answer | None:
        """An answer in place of a stream; None lets it begin. Raises HungUp."""
        return None

    def told(self, call: Call, line: bytes) -> list[bytes]:
        """What is passed on of one event of a watch."""
        return [line]

    def note(self, call: Call, answer: Answer | None) -> None:
        """Keep account of a write."""
        if call.is_write:
            metadata = json.loads(call.body or b"{}").get("metadata", {})
            self.ledger.append(
                Entry(call.method, call.path, metadata.get("name", ""), answer.status if answer else None)
            )


class Proxy:
    """Passes requests on, by the plan of their namespace."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.plans: dict[str, Plan] = {}

    def _plan(self, path: str) -> Plan:
        found = re.search(r"/namespaces/([^/]+)", path)
        return self.plans.get(found[1] if found else "") or Plan()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request of an operator."""
        call = Call(request.method, request.path, await request.read(), request.query.get("watch") == "true")
        if call.path == "/apis":
            return await self._groups()
        plan, sent = self._plan(call.path), False

        async def ask() -> Answer:
            nonlocal sent
            async with self._pass_on(request, call) as response:
                answer = Answer(response.status, await response.read())
            plan.note(call, answer)
            sent = True
            return answer

        try:
            if call.is_watch:
                return await self._stream(request, call, plan)
            answer = await plan.meet(call, ask)
        except HungUp as cut:
            return await _break_off(request, cut.answer)
        finally:
            if not sent and not call.is_watch:
                plan.note(call, None)
        headers = {"Content-Type": "application/json", **dict(answer.headers)}
        return web.Response(status=answer.status, body=answer.body, headers=headers)

    async def _groups(self) -> web.Response:
        """Only what operators use: kopf asks each group for all that is in it, which is most of the work of a start."""
        found = await self._api.get("/apis")
        return web.json_response(found | {"groups": [group for group in found["groups"] if group["name"] in GROUPS]})

    @asynccontextmanager
    async def _pass_on(self, request: web.Request, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {name: request.headers[name] for name in KEPT_HEADERS if name in request.headers}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._api.session.request(
            call.method, request.raw_path, data=call.body or None, headers=headers, timeout=timeout
        ) as response:
            yield response

    async def _stream(self, request: web.Request, call: Call, plan: Plan) -> web.StreamResponse:
        """A watch, event by event, until either side ends it."""
        if (instead := await plan.open_watch(call)) is not None:
            return web.Response(status=instead.status, body=instead.body, content_type="application/json")
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        plan.streams.add(transport)
        try:
            async with self._pass_on(request, call) as response:
                stream = web.StreamResponse(status=response.status, headers={"Content-Type": "application/json"})
                await stream.prepare(request)
                async for line in response.content:
                    for event in plan.told(call, line):
                        await stream.write(event)
                await stream.write_eof()
            return stream
        except ConnectionError:  # The operator has gone, or a plan has cut it off.
            return stream
        finally:
            plan.streams.discard(transport)


async def _break_off(request: web.Request, answer: Answer | None) -> web.StreamResponse:
    """Close the connection, after half of an answer or before any."""
    response = web.StreamResponse(headers={"Content-Length": str(len(answer.body)) if answer else "0"})
    if answer:
        response.set_status(answer.status)
        await response.prepare(request)
        await response.write(answer.body[: len(answer.body) // 2])
    if request.transport:
        request.transport.abort()
    return response


@asynccontextmanager
async def running_proxy(api: Api, kubeconfig: Path) -> AsyncIterator[Proxy]:
    """A proxy that listens; `kubeconfig` is written for operators that are to go through it."""
    proxy = Proxy(api)
    application = web.Application(client_max_size=2**24)
    application.router.add_route("*", "/{path:.*}", proxy.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server = f"http://127.0.0.1:{runner.addresses[0][1]}"
    names = {"current-context": "proxy", "contexts": [{"name": "proxy", "context": {"cluster": "p", "user": "p"}}]}
    parts = {"clusters": [{"name": "p", "cluster": {"server": server}}], "users": [{"name": "p", "user": {}}]}
    kubeconfig.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **names, **parts}))
    try:
        yield proxy
    finally:
        await runner.cleanup()
