"""What the operator does to Finetunes and to what it makes for them, each verb a request or two to the API server."""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote

from finetune_api import names
from finetune_api.reasons import Reason
from finetune_api.resource import Finetune, parse_finetune
from finetune_api.status import FinetuneStatus

from finetune_operator.api_server import (
    APPLY_PATCH,
    LIST_METADATA_ONLY,
    MERGE_PATCH,
    ApiServer,
    ClusterUnreachable,
    Conflict,
    Refused,
)
from finetune_operator.base_model import MOST_BASES, awaited_name
from finetune_operator.manifests import Manifest
from finetune_operator.nodes import Nodes
from finetune_operator.observed import (
    Cleanup,
    Job,
    Observed,
    Pod,
    controller_of,
    observed_children,
    observed_cleanup,
)
from finetune_operator.remembered import Remembered
from finetune_operator.troubles import Troubles

log = logging.getLogger(__name__)

REFUSAL_WAIT = timedelta(seconds=15)
"""Wait before an object is created again that the API server has refused, say for a quota: whatever it is that makes
somebody ask again, be it the refusal in the status, whose words may differ each time."""


class Key(NamedTuple):
    """Which Finetune."""

    namespace: str
    name: str


class Cluster:
    """Finetunes and their children, as the API server keeps them."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api
        self.nodes = Nodes(api)
        self.troubles = Troubles(api)
        self._refusals = Remembered[Refused](REFUSAL_WAIT.total_seconds())

    async def get_finetune(self, key: Key) -> Finetune | None:
        """The Finetune, or None where there is none."""
        body = await self.get_finetune_body(key)
        return parse_finetune(body) if body else None

    async def get_finetune_body(self, key: Key) -> dict[str, Any] | None:
        """The Finetune as the API server returns it."""
        # The name may be what a user has written: no part of it may lead to another path.
        return await self._api.get(f"{_finetunes(key.namespace)}/{quote(key.name, safe='')}")

    async def get_bases(self, finetune: Finetune) -> tuple[Finetune, ...]:
        """The Finetune that this one waits for, then the one that that one waits for, until one is met again."""
        bases: list[Finetune] = []
        met, last = set[str](), finetune
        while (name := awaited_name(last)) and len(bases) < MOST_BASES and last.metadata.uid not in met:
            met.add(last.metadata.uid)
            base = await self.get_finetune(Key(finetune.metadata.namespace, name))
            if base is None:
                break
            bases.append(base)
            last = base
        return tuple(bases)

    async def list_versions(self, namespaces: list[str]) -> dict[Key, str]:
        """Every Finetune of these namespaces, or of all, and its resourceVersion."""
        paths = [_finetunes(namespace) for namespace in namespaces] or [_finetunes(None)]
        versions: dict[Key, str] = {}
        for path in paths:
            async for page, _ in self._api.pages(path, accept=LIST_METADATA_ONLY):
                metadata = [body["metadata"] for body in page]
                versions |= {Key(meta["namespace"], meta["name"]): meta["resourceVersion"] for meta in metadata}
        return versions

    async def list_children(self, finetune: Finetune) -> Observed:
        """The Jobs of a Finetune with their pods, and pods whose Job is gone; all read now."""
        observed = await self._list_children(finetune)
        # A Job that was made between the two lists is not gone: where a pod has none, its Job is looked for once more.
        return await self._list_children(finetune) if observed.strays else observed

    async def _list_children(self, finetune: Finetune) -> Observed:
        meta = finetune.metadata
        selector = [("labelSelector", f"{names.LABEL_UID}={meta.uid}")]
        # One after the other: a Job that is complete must not meet its pod as it was before, without its result.
        jobs = await self._api.get_items(f"/apis/batch/v1/namespaces/{meta.namespace}/jobs", selector)
        pods = await self._api.get_items(f"/api/v1/namespaces/{meta.namespace}/pods", selector)
        return observed_children(jobs, pods, meta.uid)

    async def get_cleanup(self, finetune: Finetune) -> Cleanup | None:
        """The Job that removes what a Finetune wrote, where it was made."""
        meta = finetune.metadata
        selector = [("labelSelector", f"{names.LABEL_CLEANUP_OF}={meta.uid}")]
        jobs = await self._api.get_items(f"/apis/batch/v1/namespaces/{meta.namespace}/jobs", selector)
        pods = await self._api.get_items(f"/api/v1/namespaces/{meta.namespace}/pods", selector) if jobs else []
        return observed_cleanup(jobs, pods)

    async def remove_lost_pod(self, namespace: str, pod: Pod, message: str, now: datetime) -> bool:
        """Call this very pod failed, as the pod collector of Kubernetes does, and delete it without its kubelet.

        Without the first, the Job controller would wait for the kubelet, and keep the pod. Says whether it could.
        """
        path = f"/api/v1/namespaces/{namespace}/pods/{pod.name}"
        condition = {"type": "DisruptionTarget", "status": "True", "reason": Reason.NODE_LOST.value, "message": message}
        stamped = condition | {"lastTransitionTime": f"{now:%Y-%m-%dT%H:%M:%SZ}"}
        body = {"metadata": {"uid": pod.uid}, "status": {"phase": "Failed", "conditions": [stamped]}}
        merge = "application/strategic-merge-patch+json"
        try:
            await self._api.request("PATCH", f"{path}/status", body=body, content_type=merge)
            await self._delete(path, pod.uid, propagation="Background", grace_seconds=0)
        except (Conflict, Refused) as error:
            log.warning("pod %s stays: %s", pod.name, error)
            return False
        return True

    async def create(self, manifest: Manifest) -> dict[str, Any]:
        """Create the object; one that is there already is adopted if it was made for the same Finetune.

        Returns it as it is then. Raises Refused when the name belongs to somebody else, and once it has, the same
        for a while without asking.
        """
        place = f"{_path_of(manifest)}/{manifest['metadata']['name']}"
        if (earlier := self._refusals.get(place)) is not None:
            raise type(earlier)(str(earlier))
        try:
            return await self._create(manifest)
        except Refused as refusal:
            self._refusals.put(place, type(refusal)(str(refusal)))
            raise

    async def _create(self, manifest: Manifest) -> dict[str, Any]:
        path = _path_of(manifest)
        try:
            return await self._api.request("POST", path, body=manifest)
        except Conflict:
            existing = await self._api.get(f"{path}/{manifest['metadata']['name']}")
            if existing is None:
                raise  # It has gone in between: the next pass creates it.
            if _made_for(existing) != _made_for(manifest):
                raise Refused(
                    f"{manifest['kind']} {manifest['metadata']['name']} exists and belongs to somebody else: delete it"
                ) from None
            return existing

    async def delete_job(self, namespace: str, job: Job) -> None:
        """Delete this very Job. Its pods get their grace period, and it stays visible until they are gone."""
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{job.name}"
        await self._delete(path, job.uid, propagation="Foreground")

    async def delete_pod(self, namespace: str, pod: Pod) -> None:
        """Delete this very pod, which gets its grace period."""
        await self._delete(f"/api/v1/namespaces/{namespace}/pods/{pod.name}", pod.uid, propagation="Background")

    async def label_job(self, namespace: str, job: Job, labels: Mapping[str, str]) -> None:
        """Set labels of this very Job. Where they are refused, it keeps its old ones, and the run goes on."""
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{job.name}"
        body = {"metadata": {"uid": job.uid, "labels": labels}}
        try:
            await self._api.request("PATCH", path, body=body, content_type=MERGE_PATCH)
        except (Conflict, Refused) as error:
            log.warning("Job %s keeps its labels: %s", job.name, error)

    async def delete_finetune(self, finetune: Finetune) -> None:
        """Delete this very Finetune; its children follow by their owner references."""
        meta = finetune.metadata
        await self._delete(f"{_finetunes(meta.namespace)}/{meta.name}", meta.uid, propagation="Background")

    async def _delete(self, path: str, uid: str, propagation: str, grace_seconds: int | None = None) -> None:
        """Delete the object with that uid. One that is gone, or is another by now, is left alone."""
        options: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        options |= {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        try:
            await self._api.request("DELETE", path, body=options | {"preconditions": {"uid": uid}})
        except Conflict as conflict:
            log.info("nothing is deleted: %s", conflict)

    async def set_finalizers(self, finetune: Finetune, finalizers: list[str]) -> Finetune:
        """Replace the finalizers of the version that was read; returns the Finetune as it is then.

        Raises Conflict when the object has changed or is gone.
        """
        meta = finetune.metadata
        body = {"metadata": {"resourceVersion": meta.resource_version, "finalizers": finalizers}}
        path = f"{_finetunes(meta.namespace)}/{meta.name}"
        answer = await self._api.request("PATCH", path, body=body, content_type=MERGE_PATCH)
        version = str(answer["metadata"]["resourceVersion"])
        metadata = meta.model_copy(update={"resource_version": version, "finalizers": finalizers})
        return finetune.model_copy(update={"metadata": metadata})

    async def write_status(self, finetune: Finetune, status: FinetuneStatus) -> dict[str, Any]:
        """Server-side apply of the whole status, fenced by the resourceVersion that it was decided from.

        Returns the Finetune as it is then. Raises Conflict when the object has changed or is gone.
        """
        meta = finetune.metadata
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": meta.name, "namespace": meta.namespace, "resourceVersion": meta.resource_version},
            "status": status.to_json(),
        }
        query = [("fieldManager", names.FIELD_MANAGER), ("force", "true")]
        path = f"{_finetunes(meta.namespace)}/{meta.name}/status"
        return await self._api.request("PATCH", path, query, body, content_type=APPLY_PATCH)

    async def record_event(self, event: Manifest) -> None:
        """Record an Event; one that is there already is counted up. One that cannot be recorded holds nothing up."""
        path = f"/api/v1/namespaces/{event['metadata']['namespace']}/events"
        try:
            await self._api.request("POST", path, body=event)
        except Conflict:
            await self._count_up(f"{path}/{event['metadata']['name']}", event["lastTimestamp"])
        except (ClusterUnreachable, Refused) as error:
            log.warning("an event was not recorded: %s", error)

    async def _count_up(self, path: str, last: str) -> None:
        try:
            known = await self._api.get(path)
            if known:
                body = {"count": int(known.get("count") or 1) + 1, "lastTimestamp": last}
                await self._api.request("PATCH", path, body=body, content_type=MERGE_PATCH)
        except (ClusterUnreachable, Conflict, Refused) as error:
            log.warning("an event was not counted up: %s", error)


def _finetunes(namespace: str | None) -> str:
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{names.API_VERSION}{scope}/{names.PLURAL}"


def _path_of(manifest: Manifest) -> str:
    group = "api/v1" if manifest["apiVersion"] == "v1" else f"apis/{manifest['apiVersion']}"
    return f"/{group}/namespaces/{manifest['metadata']['namespace']}/{manifest['kind'].lower()}s"


def _made_for(body: Mapping[str, Any]) -> str | None:
    """Uid of the Finetune that the object was made for: its owner, but of a cleanup Job."""
    owner = controller_of(body)
    return owner.get("uid") if owner else body["metadata"].get("labels", {}).get(names.LABEL_CLEANUP_OF)
