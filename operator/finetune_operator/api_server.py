"""Requests to the Kubernetes API server: JSON in and out, and what went wrong as one of a few exceptions.

The client's typed API classes would cost more than 100 MiB of resident memory to import, and parse every object into a
class that we would take apart again; its connection, authentication and configuration are what we use.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeAlias

import aiohttp
from finetune_api.words import one_line
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.config import ConfigException

from finetune_operator import metrics

Query: TypeAlias = list[tuple[str, str]]
"""Names and values of a path's query."""

REQUEST_SECONDS = 30
"""Longest one request may take."""

REPEAT_AFTER_SECONDS = (0.1, 0.4)
"""Waits before a request that failed is made again within its pass. A pass makes half a dozen requests: were it begun
anew for each that fails, an API server that fails at every third one would let hardly any pass get through."""

QUICK_SECONDS = 1.0
"""A request that took longer to fail is not repeated: waiting once was enough."""

METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
LIST_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""What to accept where the rest of an object does not matter. Source: Kubernetes, "Metadata-only fetches"."""

PAGE_SIZE = 500
"""Objects of one page of a list."""

WATCH_GRACE_SECONDS = 5
"""So long after its time a watch that has not ended is given up."""

MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
"""What a PATCH says: these fields, the others as they were; or all that this field manager wants."""

LEASE_API = "/apis/coordination.k8s.io/v1"
"""Asked for also while the API server wants to be left alone: who is the leader cannot wait."""

NAMESPACE_TERMINATING = "NamespaceTerminating"
"""Cause of a refusal. Source: Kubernetes API, `NamespaceTerminatingCause` of core/v1."""

DENIED = ("denied the request", "denied request")
"""Words of an admission webhook, and of an admission policy, that has refused an object."""

LONGEST_RETRY_AFTER_SECONDS = 60.0
"""The longest that the API server can make us wait; a Retry-After beyond it is taken for a mistake."""


class ClusterUnreachable(Exception):
    """The API server did not answer, or answered that it cannot now; the next pass tries again."""

    def __init__(self, message: str, retry_after_seconds: float = 0.0) -> None:
        """`retry_after_seconds`: how long the API server asks to be left alone."""
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Conflict(Exception):
    """The object has changed since it was read: observe again."""


class Refused(Exception):
    """The API server will not do this now: forbidden, over quota, a name that is taken."""


class NamespaceTerminating(Refused):
    """The namespace is being deleted: nothing can be made in it any more."""


class Invalid(Refused):
    """The API server will never do this: the object breaks a rule of its kind."""


class ApiServer:
    """The API server. Make one with `connect()`, and close it."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._left_alone_until = 0.0

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def get(self, path: str) -> dict[str, Any] | None:
        """The object, or None where there is none."""
        answer = await self.request("GET", path)
        return answer or None

    async def get_items(self, path: str, query: Query | None = None) -> list[dict[str, Any]]:
        """The objects of one kind that the query selects, in one answer."""
        answer = await self.request("GET", path, query)
        return list(answer.get("items", []))

    async def pages(
        self, path: str, label_selector: str = "", accept: str = "application/json"
    ) -> AsyncIterator[tuple[list[dict[str, Any]], str]]:
        """All objects, a page at a time, each with the version of the list, from which a watch misses nothing.

        Whoever keeps what is needed of each page never has all objects in memory.
        """
        query = [("limit", str(PAGE_SIZE)), *([("labelSelector", label_selector)] if label_selector else [])]
        page: Query = []
        while True:
            answer = await self.request("GET", path, [*query, *page], accept=accept)
            yield answer.get("items") or [], str(answer["metadata"]["resourceVersion"])
            if not answer["metadata"].get("continue"):
                return
            page = [("continue", answer["metadata"]["continue"])]

    async def watch(
        self, path: str, label_selector: str, version: str, seconds: float
    ) -> AsyncIterator[dict[str, Any]]:
        """Each change after `version`, for `seconds`.

        Raises ClusterUnreachable, also where the version is too old by now, and Refused.
        """
        query = [
            ("labelSelector", label_selector),
            ("resourceVersion", version),
            ("timeoutSeconds", str(max(1, round(seconds)))),
        ]
        timeout = aiohttp.ClientTimeout(total=seconds + WATCH_GRACE_SECONDS)
        async for line in self.watch_lines(path, query, timeout):
            change = _json(line)
            if change.get("type") not in ("ADDED", "MODIFIED", "DELETED"):
                raise ClusterUnreachable(f"watching {path}: {change.get('object', change).get('message')}")
            yield change

    async def watch_lines(self, path: str, query: Query, timeout: aiohttp.ClientTimeout) -> AsyncIterator[bytes]:
        """Each line of a watch: one event in JSON. Raises ClusterUnreachable and Refused."""
        try:
            arguments = await self._api.param_serialize(
                "GET",
                path,
                query_params=[("watch", "true"), *query],
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
            )
            response = (await self._api.call_api(*arguments, _request_timeout=timeout)).response
            async with response:
                if response.status != 200:
                    _checked("GET", path, response.status, await response.read())
                rest = b""
                async for chunk in response.content.iter_any():  # aiohttp's own lines have a limit.
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield line
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterUnreachable(f"watching {path}: {type(error).__name__} {error}") from error

    async def request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> dict[str, Any]:
        """One request, made again where it fails; done twice it is done once, or a Conflict.

        A GET that finds nothing gives {}; every other refusal is one of the exceptions above.
        """
        for wait in REPEAT_AFTER_SECONDS:
            began = time.monotonic()
            try:
                return await self._once(method, path, query, body, content_type, accept)
            except ClusterUnreachable as error:
                if error.retry_after_seconds or time.monotonic() - began > QUICK_SECONDS:
                    raise
            await asyncio.sleep(wait)
        return await self._once(method, path, query, body, content_type, accept)

    async def _once(
        self,
        method: str,
        path: str,
        query: Query | None,
        body: Mapping[str, Any] | None,
        content_type: str,
        accept: str,
    ) -> dict[str, Any]:
        """One try of a request."""
        self._leave_alone(path)
        headers = {"Accept": accept, "Content-Type": content_type}
        try:
            arguments = await self._api.param_serialize(
                method, path, query_params=query or [], header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = await self._api.call_api(*arguments, _request_timeout=REQUEST_SECONDS)
            await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            metrics.REQUESTS.labels(method, "none").inc()
            raise ClusterUnreachable(f"{method} {path}: {type(error).__name__} {error}") from error
        metrics.REQUESTS.labels(method, response.status).inc()
        retry_after = _retry_after(response.getheader("Retry-After"))
        self._left_alone_until = max(self._left_alone_until, time.monotonic() + retry_after)
        return _checked(method, path, response.status, response.data, retry_after)

    def _leave_alone(self, path: str) -> None:
        """Raise ClusterUnreachable while the API server wants to be left alone."""
        left = self._left_alone_until - time.monotonic()
        if left > 0 and not path.startswith(LEASE_API):
            raise ClusterUnreachable(f"the API server wants to be left alone for {left:.1f} s", left)


async def connect(kubeconfig: str | None = None) -> ApiServer:
    """That of this pod's cluster; outside of a pod that of `kubeconfig`, or of the environment's kubeconfig."""
    try:
        config.load_incluster_config()
    except ConfigException:
        await config.load_kube_config(kubeconfig)
    return ApiServer(ApiClient())


def _retry_after(header: str | None) -> float:
    """Seconds of a Retry-After header; 0 where there is none. The API server never sends the form with a date."""
    return min(float(header), LONGEST_RETRY_AFTER_SECONDS) if header and header.isdecimal() else 0.0


def _checked(method: str, path: str, status: int, data: bytes, retry_after_seconds: float = 0.0) -> dict[str, Any]:
    found, is_missing = _object(data), status == 404 and method == "GET"
    if found is not None and (status < 300 or is_missing):
        return {} if is_missing else found
    answer = _json(data)
    # The API server repeats what users wrote, and the text goes into logs.
    text = one_line(f"{method} {path}: {status} {answer.get('message', '')}")
    if status < 300 or is_missing:
        raise ClusterUnreachable(text)  # Whoever stands in front of the API server has answered in its place.
    if status == 409 or (status == 404 and method in ("PATCH", "DELETE")):
        raise Conflict(text)
    if status in (401, 408, 429) or status >= 500:
        raise ClusterUnreachable(text, retry_after_seconds)
    if NAMESPACE_TERMINATING in (cause.get("reason") for cause in (answer.get("details") or {}).get("causes", [])):
        raise NamespaceTerminating(text)
    raise (Invalid if _breaks_a_rule(status, text) else Refused)(text)


def _breaks_a_rule(status: int, text: str) -> bool:
    """True for the rules of the kind itself: what a webhook or a policy denies, a person may allow.

    Source: Kubernetes, `webhook/errors.ToStatusErr` and the validating admission policy; both choose the code freely.
    """
    return status == 422 and not any(words in text for words in DENIED)


def _json(data: bytes) -> dict[str, Any]:
    """The object in an answer, or what it says instead, as a message."""
    found = _object(data)
    return {"message": data[:200].decode(errors="replace")} if found is None else found


def _object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in an answer; None where it is none."""
    try:
        value = json.loads(data or b"{}")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
