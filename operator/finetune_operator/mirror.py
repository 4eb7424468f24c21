"""What the API server has told of Finetunes, Jobs and pods: enough for a pass that changes nothing of weight.

A mirror may lag behind. Whoever is about to create or to delete, or to conclude that an attempt has ended, reads live,
but for the first start of a run: before that there is nothing to be read.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from finetune_api import names
from finetune_api.resource import Finetune, parse_finetune

from finetune_operator.api_server import ApiServer, ClusterUnreachable, Refused
from finetune_operator.cluster import Cluster, Key
from finetune_operator.observed import Observed, observed_children

log = logging.getLogger(__name__)

Body: TypeAlias = Mapping[str, Any]

OURS = f"{names.MANAGED_BY_LABEL}={names.FIELD_MANAGER},{names.LABEL_NAME}"
"""Label selector of everything that is made for Finetunes."""

JOBS, PODS = "/apis/batch/v1", "/api/v1"
"""Where Jobs and pods are served."""

LIST_AGAIN_SECONDS = 2.0
"""Shortest time from one listing to the next, should a watch end at once."""

METADATA = ("name", "namespace", "uid", "labels", "ownerReferences", "creationTimestamp", "deletionTimestamp")
SPEC = ("suspend", "parallelism", "nodeName")
"""What is kept of a child beside its status: the rest, such as its pod template, is many times as much."""


class Children:
    """The Jobs, or the pods, that were made for Finetunes: listed now and then, and watched in between.

    A listing mends what a watch has missed, be it an end that was never told.
    """

    def __init__(self, path: str, changed: Callable[[Key], None]) -> None:
        """`changed` is told whose child is new, other or gone."""
        self.is_complete = False
        """Whether they have been listed, and watched since."""
        self.path, self._changed = path, changed
        self._bodies: dict[str, Body] = {}
        self._by_run: dict[str, dict[str, None]] = {}

    def of(self, run_uid: str) -> Iterator[Body]:
        """Those of the Finetune with this uid, in the order in which they were first seen."""
        return (self._bodies[uid] for uid in self._by_run.get(run_uid, ()))

    async def follow(self, api: ApiServer, seconds: float) -> None:
        """List them and watch for `seconds`, over and over."""
        while True:
            began = time.monotonic()
            try:
                bodies, version = list[Body](), ""
                async for page, listed_at in api.pages(self.path, OURS):
                    bodies, version = [*bodies, *map(_trimmed, page)], listed_at
                self.replace(bodies)
                async for change in api.watch(self.path, OURS, version, seconds):
                    self.apply(change)
            except (ClusterUnreachable, Refused) as error:
                self.is_complete = False
                log.warning("%s are listed again: %s", self.path, error)
            except Exception:
                self.is_complete = False
                log.exception("%s are listed again: this is a bug in the operator", self.path)
            await asyncio.sleep(max(0.0, began + LIST_AGAIN_SECONDS - time.monotonic()))

    def replace(self, bodies: Iterable[Body]) -> None:
        """These are all there are."""
        there = {body["metadata"]["uid"]: body for body in bodies}
        for uid in self._bodies.keys() - there.keys():
            self._forget(uid)
        for body in there.values():
            self._note(body)
        self.is_complete = True

    def apply(self, change: Body) -> None:
        """One event of a watch."""
        if change["type"] == "DELETED":
            self._forget(change["object"]["metadata"]["uid"])
        else:
            self._note(change["object"])

    def _note(self, body: Body) -> None:
        meta = body["metadata"]
        known = self._bodies.get(meta["uid"])
        if known and int(known["metadata"]["resourceVersion"]) >= int(meta["resourceVersion"]):
            return  # Seen before, or overtaken.
        if known and _run_of(known) != _run_of(body):
            self._forget(meta["uid"])  # Somebody has edited its labels.
        self._bodies[meta["uid"]] = _trimmed(body)
        self._by_run.setdefault(_run_of(body), {})[meta["uid"]] = None
        self._changed(_key_of(body))

    def _forget(self, uid: str) -> None:
        body = self._bodies.pop(uid, None)
        if body is None:
            return
        siblings = self._by_run[_run_of(body)]
        del siblings[uid]
        if not siblings:
            del self._by_run[_run_of(body)]
        self._changed(_key_of(body))


class _Told(NamedTuple):
    """A Finetune as the API server has told of it."""

    uid: str
    version: str
    text: bytes
    """JSON: parsed, it would take five times the memory, and most are idle."""


class Mirror:
    """Finetunes as their watch has told of them last, and their children."""

    def __init__(self, namespaces: list[str], changed: Callable[[Key], None]) -> None:
        """Of these namespaces, or of all; `changed` is told whose child has changed."""
        scopes = [f"/namespaces/{namespace}" for namespace in namespaces] or [""]
        self._jobs = [Children(f"{JOBS}{scope}/jobs", changed) for scope in scopes]
        self._pods = [Children(f"{PODS}{scope}/pods", changed) for scope in scopes]
        self._finetunes: dict[Key, _Told] = {}

    def note(self, key: Key, body: Body) -> None:
        """The API server has told of a Finetune; what it told before, and comes late, is not heard."""
        meta = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        known = self._finetunes.get(key)
        if known and known.uid == meta["uid"] and int(known.version) > int(meta["resourceVersion"]):
            return
        text = json.dumps({**body, "metadata": meta}).encode()
        self._finetunes[key] = _Told(meta["uid"], meta["resourceVersion"], text)

    def forget(self, key: Key) -> None:
        """The Finetune is gone."""
        self._finetunes.pop(key, None)

    def made(self, body: Body) -> None:
        """An object was made just now: a Job need not be waited for until its watch tells of it."""
        if body.get("kind") == "Job":
            path = f"{JOBS}/namespaces/{body['metadata']['namespace']}/jobs"
            for children in self._jobs:
                if children.path in (path, f"{JOBS}/jobs"):
                    children.apply({"type": "ADDED", "object": body})

    async def refreshed(self, key: Key, cluster: Cluster) -> Finetune | None:
        """The Finetune as it is now; None where there is none."""
        body = await cluster.get_finetune_body(key)
        if body is None:
            self.forget(key)
            return None
        self.note(key, body)
        return parse_finetune(body)

    def keep(self, versions: Mapping[Key, str]) -> None:
        """Forget each Finetune that is not there any more, or not in this version."""
        old = [key for key, told in self._finetunes.items() if versions.get(key) != told.version]
        for key in old:
            del self._finetunes[key]

    def finetune(self, key: Key) -> Finetune | None:
        """The Finetune; None where it was not told of, or is old."""
        known = self._finetunes.get(key)
        return parse_finetune(json.loads(known.text)) if known else None

    def children(self, finetune: Finetune) -> Observed | None:
        """Its Jobs and pods; None while not all are known."""
        if not all(kind.is_complete for kind in (*self._jobs, *self._pods)):
            return None
        uid = finetune.metadata.uid
        jobs, pods = ([body for scope in kind for body in scope.of(uid)] for kind in (self._jobs, self._pods))
        return observed_children(jobs, pods, uid)

    async def follow(self, api: ApiServer, seconds: float) -> None:
        """Keep up with all children, listing them anew every `seconds`."""
        async with asyncio.TaskGroup() as tasks:
            for children in (*self._jobs, *self._pods):
                tasks.create_task(children.follow(api, seconds))


def _trimmed(body: Body) -> Body:
    """What a pass looks at."""
    meta, spec = body["metadata"], body.get("spec", {})
    rank = meta.get("annotations", {}).get(names.NODE_RANK_ANNOTATION)
    kept = {name: meta[name] for name in (*METADATA, "resourceVersion") if name in meta}
    if rank is not None:
        kept["annotations"] = {names.NODE_RANK_ANNOTATION: rank}
    return {
        "metadata": kept,
        "spec": {name: spec[name] for name in SPEC if name in spec},
        "status": body.get("status", {}),
    }


def _run_of(body: Body) -> str:
    """Uid of the Finetune that a child says it was made for; whose it is, its owner says."""
    return str(body["metadata"]["labels"].get(names.LABEL_UID))


def _key_of(body: Body) -> Key:
    meta = body["metadata"]
    return Key(meta["namespace"], meta["labels"][names.LABEL_NAME])
