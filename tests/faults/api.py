"""The API server as its administrator sees it, asynchronously; kubectl would need 0.2 s for each request."""

import io
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any, Self

import aiohttp
import yaml

from tests.cluster.light import LightCluster

MERGE = "application/merge-patch+json"


class Api:
    """A client of the light API server. Open it with `async with`."""

    def __init__(self, light: LightCluster) -> None:
        kubeconfig = yaml.safe_load(light.kubeconfig.read_text())
        cluster, user = kubeconfig["clusters"][0]["cluster"], kubeconfig["users"][0]["user"]
        self.server: str = cluster["server"]
        self._context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._context.load_cert_chain(user["client-certificate"], user["client-key"])
        self.session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._context, limit=0)
        self.session = aiohttp.ClientSession(self.server, connector=connector, read_bufsize=2**20)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
        """Status and JSON of one request; `kind` is the type of the body."""
        data = None if body is None else io.BytesIO(json.dumps(body).encode())
        async with self.session.request(method, path, data=data, headers={"Content-Type": kind}) as response:
            is_json = response.content_type == "application/json"  # A path that is not served yet answers in words.
            return response.status, await (response.json() if is_json else response.text())

    async def get(self, path: str) -> Any:
        """What is there; None where nothing is."""
        status, body = await self.ask("GET", path)
        assert status in (200, 404), body
        return body if status == 200 else None

    async def list(self, path: str) -> list[dict[str, Any]]:
        """The items of a list."""
        return list((await self.get(path))["items"])

    async def make(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object; one that is there already will do."""
        status, made = await self.ask("POST", path, body)
        assert status in (201, 409), made
        return dict(made)

    async def watch(self, path: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Kind and object of each event from the beginning on, for ever; `path` ends where a parameter can follow."""
        timeout = aiohttp.ClientTimeout(total=None)
        async with self.session.get(f"{path}watch=true&timeoutSeconds=3600", timeout=timeout) as response:
            async for line in response.content:
                event = json.loads(line)
                yield event["type"], event["object"]
