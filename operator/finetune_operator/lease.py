"""One operator at a time: a Lease that whoever works holds and renews, and that others wait for.

A holder is believed for as long as the Lease keeps changing, by the clock of whoever waits: no two clocks are compared.
Source: Kubernetes, `coordination.k8s.io/v1` Lease; the times are those of client-go's leader election.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp

from finetune_operator.api_server import LEASE_API, REQUEST_SECONDS, ApiServer, ClusterUnreachable, Conflict, Refused

log = logging.getLogger(__name__)

LEASE_SECONDS = 15
"""A Lease that has not changed for so long belongs to nobody."""

RENEW_SECONDS = 2.0
"""Wait between two renewals, and between two looks at somebody else's Lease."""

GIVE_UP_SECONDS = 10.0
"""A holder that could not renew for so long stops working, before anybody else may begin."""


RELEASE_SECONDS = 5.0
"""How long a process that leaves waits to give its Lease back, well within the grace period of its pod."""


class Lease:
    """One Lease on the API server; as text, its namespace and name."""

    def __init__(self, api: ApiServer, namespace: str, name: str) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._leases = f"{LEASE_API}/namespaces/{namespace}/leases"

    def __str__(self) -> str:
        return f"{self._namespace}/{self._name}"

    async def get(self) -> dict[str, Any] | None:
        """The Lease as it is now, or None where there is none."""
        return await self._api.get(f"{self._leases}/{self._name}")

    async def put(self, spec: dict[str, Any], known: dict[str, Any] | None) -> None:
        """Create it, or replace the version that is known. Raises Conflict when somebody was quicker."""
        if known:
            await self._api.request("PUT", f"{self._leases}/{self._name}", body=known | {"spec": spec})
        else:
            metadata = {"namespace": self._namespace, "name": self._name}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
            await self._api.request("POST", self._leases, body=body)

    async def changes(self) -> AsyncIterator[None]:
        """Once for each change that is heard of, until the watch ends.

        Raises ClusterUnreachable, also where nothing is heard for as long as a request may take, and Refused.
        """
        query = [("fieldSelector", f"metadata.name={self._name}")]
        timeout = aiohttp.ClientTimeout(total=None, sock_read=REQUEST_SECONDS)
        async for _ in self._api.watch_lines(self._leases, query, timeout):
            yield None


class Leadership:
    """The claim of one process on one Lease; `lost` is called once, when it has to stop working."""

    def __init__(self, lease: Lease, identity: str, lost: Callable[[], None]) -> None:
        self._lease = lease
        self._identity = identity
        self._lost = lost
        self._seen: tuple[str, float] = ("", 0.0)
        """Version of somebody else's Lease, and when it was first seen."""
        self._is_taken = False
        self._renewed_at = 0.0
        self._keeper: asyncio.Task[None] | None = None

    @property
    def age_seconds(self) -> float:
        """Time since the Lease was renewed last."""
        return time.monotonic() - self._renewed_at

    async def acquire(self) -> None:
        """Wait until the Lease is ours; from then on it is kept until `release`."""
        told = False
        while not await self._try():
            if not told:
                log.info("waiting for Lease %s, which another operator holds", self._lease)
            told = True
            await asyncio.sleep(RENEW_SECONDS)
        log.info("holding Lease %s as %s", self._lease, self._identity)
        self._keeper = asyncio.create_task(self._keep(), name="lease")

    async def release(self) -> None:
        """Let the next one begin at once. What hinders that is told: the Lease then runs out by itself."""
        if self._keeper is None:
            return
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                lease = await self._lease.get()
                if lease and _holder(lease) == self._identity:
                    await self._lease.put(_held(lease, holder=None), lease)
        except (ClusterUnreachable, Conflict, Refused, TimeoutError) as error:
            words = str(error) or f"nobody answered within {RELEASE_SECONDS:.0f} s"
            log.warning("Lease %s was not released: %s", self._lease, words)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            if not await self._is_kept():
                log.error("Lease %s is lost: another operator may work now", self._lease)
                self._lost()
                return

    async def _is_kept(self) -> bool:
        """Try to renew the Lease; False once it may be another's. A try that hangs ends before that can be."""
        try:
            async with asyncio.timeout(GIVE_UP_SECONDS - self.age_seconds):
                return await self._try() or not self._is_taken
        except TimeoutError:
            return False

    async def _try(self) -> bool:
        """Take or renew the Lease; False where somebody else holds it, or nobody can tell."""
        try:
            lease = await self._lease.get()
            self._is_taken = lease is not None and not self._is_free(lease)
            if self._is_taken:
                return False
            began = time.monotonic()
            await self._lease.put(_held(lease, holder=self._identity), lease)
        except Conflict:
            return False
        except (ClusterUnreachable, Refused) as error:
            log.warning("Lease %s: %s", self._lease, error)
            return False
        self._renewed_at = began
        return True

    def _is_free(self, lease: dict[str, Any]) -> bool:
        """Ours, nobody's, or its holder has been silent for longer than it promised."""
        if _holder(lease) in (None, "", self._identity):
            return True
        version, now = lease["metadata"]["resourceVersion"], time.monotonic()
        if version != self._seen[0]:
            self._seen = (version, now)
        return now - self._seen[1] > float(lease["spec"].get("leaseDurationSeconds") or LEASE_SECONDS)


def _holder(lease: dict[str, Any]) -> str | None:
    holder: str | None = lease.get("spec", {}).get("holderIdentity")
    return holder


def _held(lease: dict[str, Any] | None, holder: str | None) -> dict[str, Any]:
    """The spec of the Lease with this holder, as of now."""
    before, stamp = (lease or {}).get("spec", {}), f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    changed = before.get("holderIdentity") != holder
    return {
        **before,
        "holderIdentity": holder,
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": stamp,
        "acquireTime": stamp if changed else before.get("acquireTime", stamp),
        "leaseTransitions": before.get("leaseTransitions", 0) + (changed and holder is not None),
    }
