"""Nodes: what hardware they say they have, and whether they are well. Where they may not be read, nothing is known."""

import logging
from typing import Any

from finetune_operator.api_server import LIST_METADATA_ONLY, METADATA_ONLY, ApiServer, Query, Refused
from finetune_operator.observed import Labels
from finetune_operator.remembered import Remembered

log = logging.getLogger(__name__)

BELIEVED_SECONDS = 300
"""How long labels of nodes are believed: they say what hardware a node has."""

NODES_SEEN = 500
"""Nodes that are looked at: of a larger cluster, a part tells which kinds it has."""


class Nodes:
    """The cluster's nodes; their labels are remembered for a while."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api
        self._known = Remembered[tuple[Labels, ...]](BELIEVED_SECONDS)

    async def labels_of(self, name: str) -> Labels | None:
        """Labels of the node; None where it is gone, or may not be read."""
        found = await self._labels(f"/api/v1/nodes/{name}", METADATA_ONLY)
        return found[0] if found else None

    async def labels_with(self, selector: Labels) -> tuple[Labels, ...]:
        """Labels of the nodes that a pod with this node selector may run on; none where nodes may not be read."""
        wanted = ",".join(f"{label}={value}" for label, value in sorted(selector.items()))
        query = [("labelSelector", wanted), ("limit", str(NODES_SEEN))]
        return await self._labels("/api/v1/nodes", LIST_METADATA_ONLY, query)

    async def _labels(self, path: str, accept: str, query: Query | None = None) -> tuple[Labels, ...]:
        key = f"{path}?{query}"
        if (known := self._known.get(key)) is not None:
            return known
        try:
            answer = await self._api.request("GET", path, query, accept=accept)
        except Refused as refusal:
            log.info("nodes are not read: %s", refusal)
            answer = {}
        bodies = answer.get("items", [answer] if answer else []) or []  # A list of nothing is null.
        return self._known.put(key, tuple(body["metadata"].get("labels", {}) for body in bodies))

    async def trouble_of(self, name: str) -> str | None:
        """What is wrong with a node: it is gone, or not ready; None where it is well, or may not be read."""
        try:
            node = await self._api.get(f"/api/v1/nodes/{name}")
        except Refused as refusal:
            log.info("nodes are not read: %s", refusal)
            return None
        if node is None:
            return "is gone"
        conditions = {condition["type"]: condition for condition in node.get("status", {}).get("conditions", [])}
        ready: dict[str, Any] = conditions.get("Ready", {})
        return None if ready.get("status") == "True" else f"is not ready ({ready.get('reason', 'nobody says why')})"
