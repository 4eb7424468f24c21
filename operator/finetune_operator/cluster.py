"""The only module that talks to Kubernetes: few verbs, JSON in and out.

The client's typed API classes would cost more than 100 MiB of resident memory to import, and parse every object into a
class that we would take apart again; its connection, authentication and configuration are what we use.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
from finetune_api import names
from finetune_api.reasons import Reason
from finetune_api.resource import Finetune, parse_finetune
from finetune_api.status import FinetuneStatus
from finetune_api.words import one_line
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.config import ConfigException

from finetune_operator import metrics
from finetune_operator.kueue import workload_names
from finetune_operator.manifests import Manifest
from finetune_operator.observed import (
    Cleanup,
    Job,
    JobState,
    Labels,
    Observed,
    Pod,
    observed_children,
    observed_cleanup,
)
from finetune_operator.remembered import Remembered

log = logging.getLogger(__name__)

REQUEST_SECONDS = 30
"""Longest one request may take."""

REPEAT_AFTER_SECONDS = (0.1, 0.4)
"""Waits before a request that failed is made again within its pass. A pass makes half a dozen requests: were it begun
anew for each that fails, an API server that fails at every third one would let hardly any pass get through."""

QUICK_SECONDS = 1.0
"""A request that took longer to fail is not repeated: waiting once was enough."""

TROUBLE_AGE = timedelta(seconds=10)
"""A Job whose pod has not started for so long is asked for its Events."""

NODE_SECONDS = 300
"""How long labels of nodes are believed: they say what hardware a node has."""

NODES_SEEN = 500
"""Nodes that are looked at: of a larger cluster, a part tells which kinds it has."""

METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
LIST_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""What to accept where the rest of an object does not matter. Source: Kubernetes, "Metadata-only fetches"."""

PAGE_SIZE = 500
"""Objects of one page of a list."""

WATCH_GRACE_SECONDS = 5
"""So long after its time a watch that has not ended is given up."""

TROUBLED_PODS = 4
"""Pods of one Job that are asked for: those of a gang mostly wait for the same thing."""


LEASE_API = "/apis/coordination.k8s.io/v1"

NAMESPACE_TERMINATING = "NamespaceTerminating"
"""Cause of a refusal. Source: Kubernetes API, `NamespaceTerminatingCause` of core/v1."""


class Key(NamedTuple):
    """Which Finetune."""

    namespace: str
    name: str


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
    """The API server will never do this: the object breaks a rule."""


@dataclass(frozen=True)
class Caller:
    """Who a report token belongs to."""

    namespace: str
    pod_name: str
    pod_uid: str


class Cluster:
    """The API server. Make one with `connect()`, and close it."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._nodes = Remembered[tuple[Labels, ...]](NODE_SECONDS)
        self._left_alone_until = 0.0

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def get_finetune(self, key: Key) -> Finetune | None:
        """The Finetune, or None where there is none."""
        body = await self.get_finetune_body(key)
        return parse_finetune(body) if body else None

    async def get_finetune_body(self, key: Key) -> dict[str, Any] | None:
        """The Finetune as the API server returns it."""
        # The name may be what a user has written: no part of it may lead to another path.
        return await self._get(f"{_finetunes(key.namespace)}/{quote(key.name, safe='')}")

    async def list_versions(self, namespaces: list[str]) -> dict[Key, str]:
        """Every Finetune of these namespaces, or of all, and its resourceVersion."""
        paths = [_finetunes(namespace) for namespace in namespaces] or [_finetunes(None)]
        pages = [await self.list_with_version(path, accept=LIST_METADATA_ONLY) for path in paths]
        metadata = [body["metadata"] for bodies, _ in pages for body in bodies]
        return {Key(meta["namespace"], meta["name"]): meta["resourceVersion"] for meta in metadata}

    async def list_children(self, finetune: Finetune) -> Observed:
        """The Jobs of a Finetune with their pods, and pods whose Job is gone; all read now."""
        meta = finetune.metadata
        selector = [("labelSelector", f"{names.LABEL_UID}={meta.uid}")]
        # One after the other: a Job that is complete must not meet its pod as it was before, without its result.
        jobs = await self._list(f"/apis/batch/v1/namespaces/{meta.namespace}/jobs", selector)
        pods = await self._list(f"/api/v1/namespaces/{meta.namespace}/pods", selector)
        return observed_children(jobs, pods, meta.uid)

    async def list_with_version(
        self, path: str, label_selector: str = "", accept: str = "application/json"
    ) -> tuple[list[dict[str, Any]], str]:
        """All objects, page by page, and the version of the list, from which a watch misses nothing."""
        bodies: list[dict[str, Any]] = []
        query = [("limit", str(PAGE_SIZE)), *([("labelSelector", label_selector)] if label_selector else [])]
        page: list[tuple[str, str]] = []
        while True:
            answer = await self._request("GET", path, [*query, *page], accept=accept)
            bodies += answer.get("items") or []
            if not answer["metadata"].get("continue"):
                return bodies, str(answer["metadata"]["resourceVersion"])
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
        async for line in self._watched(path, query, timeout):
            change = _json(line)
            if change.get("type") not in ("ADDED", "MODIFIED", "DELETED"):
                raise ClusterUnreachable(f"watching {path}: {change.get('object', change).get('message')}")
            yield change

    async def with_trouble(self, observed: Observed, namespace: str) -> Observed:
        """What was observed; Jobs whose pods have not started for a while with the newest warning about them."""
        return replace(observed, jobs=tuple([await self._with_trouble(job, namespace) for job in observed.jobs]))

    async def get_cleanup(self, finetune: Finetune) -> Cleanup | None:
        """The Job that removes what a Finetune wrote, where it was made."""
        meta = finetune.metadata
        selector = [("labelSelector", f"{names.LABEL_CLEANUP_OF}={meta.uid}")]
        jobs = await self._list(f"/apis/batch/v1/namespaces/{meta.namespace}/jobs", selector)
        pods = await self._list(f"/api/v1/namespaces/{meta.namespace}/pods", selector) if jobs else []
        return observed_cleanup(jobs, pods)

    async def _with_trouble(self, job: Job, namespace: str) -> Job:
        """The Job; where its pod has not started for a while, with the newest warning about either, or its queue's."""
        age = datetime.now(UTC) - job.created_at if job.created_at else timedelta(0)
        if job.state is not JobState.RUNNING or job.has_started or age < TROUBLE_AGE:
            return job
        late = [pod.name for pod in job.pods if pod.started_at is None]
        about = workload_names(job.name, job.uid) if job.is_suspended else [job.name, *late[:TROUBLED_PODS]]
        queries = [[("fieldSelector", f"involvedObject.name={name},type=Warning")] for name in about]
        lists = await asyncio.gather(*(self._list(f"/api/v1/namespaces/{namespace}/events", q) for q in queries))
        events = [event for found in lists for event in found]
        newest = max(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime")), default=None)
        return replace(job, trouble=_words_of(newest)) if newest else job

    async def node_labels(self, name: str) -> Labels | None:
        """Labels of the node; None where it is gone, or may not be read."""
        found = await self._metadata_of_nodes(f"/api/v1/nodes/{name}", METADATA_ONLY)
        return found[0] if found else None

    async def nodes_with(self, selector: Labels) -> tuple[Labels, ...]:
        """Labels of the nodes that a pod with this node selector may run on; none where nodes may not be read."""
        wanted = ",".join(f"{label}={value}" for label, value in sorted(selector.items()))
        query = [("labelSelector", wanted), ("limit", str(NODES_SEEN))]
        return await self._metadata_of_nodes("/api/v1/nodes", LIST_METADATA_ONLY, query)

    async def _metadata_of_nodes(
        self, path: str, accept: str, query: list[tuple[str, str]] | None = None
    ) -> tuple[Labels, ...]:
        key = f"{path}?{query}"
        if (known := self._nodes.get(key)) is not None:
            return known
        try:
            answer = await self._request("GET", path, query, accept=accept)
        except Refused as refusal:
            log.info("nodes are not read: %s", refusal)
            answer = {}
        bodies = answer.get("items", [answer] if answer else []) or []  # A list of nothing is null.
        return self._nodes.put(key, tuple(body["metadata"].get("labels", {}) for body in bodies))

    async def node_trouble(self, name: str) -> str | None:
        """What is wrong with a node: it is gone, or not ready; None where it is well, or may not be read."""
        try:
            node = await self._get(f"/api/v1/nodes/{name}")
        except Refused as refusal:
            log.info("nodes are not read: %s", refusal)
            return None
        if node is None:
            return "is gone"
        conditions = {condition["type"]: condition for condition in node.get("status", {}).get("conditions", [])}
        ready: dict[str, Any] = conditions.get("Ready", {})
        return None if ready.get("status") == "True" else f"is not ready ({ready.get('reason', 'nobody says why')})"

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
            await self._request("PATCH", f"{path}/status", body=body, content_type=merge)
            await self._delete(path, pod.uid, propagation="Background", grace_seconds=0)
        except (Conflict, Refused) as error:
            log.warning("pod %s stays: %s", pod.name, error)
            return False
        return True

    async def create(self, manifest: Manifest) -> dict[str, Any]:
        """Create the object; one that is there already is adopted if it was made for the same Finetune.

        Returns it as it is then. Raises Refused when the name belongs to somebody else.
        """
        path = _path_of(manifest)
        try:
            return await self._request("POST", path, body=manifest)
        except Conflict:
            existing = await self._get(f"{path}/{manifest['metadata']['name']}")
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

    async def label_job(self, namespace: str, job: Job, labels: Mapping[str, str]) -> None:
        """Set labels of this very Job. Where they are refused, it keeps its old ones, and the run goes on."""
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{job.name}"
        body = {"metadata": {"uid": job.uid, "labels": labels}}
        try:
            await self._request("PATCH", path, body=body, content_type="application/merge-patch+json")
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
            await self._request("DELETE", path, body=options | {"preconditions": {"uid": uid}})
        except Conflict as conflict:
            log.info("nothing is deleted: %s", conflict)

    async def set_finalizers(self, finetune: Finetune, finalizers: list[str]) -> Finetune:
        """Replace the finalizers of the version that was read; returns the Finetune as it is then.

        Raises Conflict when the object has changed or is gone.
        """
        meta = finetune.metadata
        body = {"metadata": {"resourceVersion": meta.resource_version, "finalizers": finalizers}}
        path = f"{_finetunes(meta.namespace)}/{meta.name}"
        answer = await self._request("PATCH", path, body=body, content_type="application/merge-patch+json")
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
        return await self._request("PATCH", path, query, body, content_type="application/apply-patch+yaml")

    async def record_event(self, event: Manifest) -> None:
        """Record an Event; one that is there already is counted up. One that cannot be recorded holds nothing up."""
        path = f"/api/v1/namespaces/{event['metadata']['namespace']}/events"
        try:
            await self._request("POST", path, body=event)
        except Conflict:
            await self._count_up(f"{path}/{event['metadata']['name']}", event["lastTimestamp"])
        except (ClusterUnreachable, Refused) as error:
            log.warning("an event was not recorded: %s", error)

    async def _count_up(self, path: str, last: str) -> None:
        try:
            known = await self._get(path)
            if known:
                body = {"count": int(known.get("count") or 1) + 1, "lastTimestamp": last}
                await self._request("PATCH", path, body=body, content_type="application/merge-patch+json")
        except (ClusterUnreachable, Conflict, Refused) as error:
            log.warning("an event was not counted up: %s", error)

    async def get_lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        """The Lease, or None where there is none."""
        return await self._get(f"{_leases(namespace)}/{name}")

    async def put_lease(self, lease: dict[str, Any]) -> None:
        """Create the Lease, or replace the version that it was read as. Raises Conflict when somebody was quicker."""
        path, meta = _leases(lease["metadata"]["namespace"]), lease["metadata"]
        if "resourceVersion" in meta:
            await self._request("PUT", f"{path}/{meta['name']}", body=lease)
        else:
            await self._request("POST", path, body=lease)

    async def watch_lease(self, namespace: str, name: str) -> AsyncIterator[None]:
        """Once for each change of the Lease that is heard of, until the watch ends.

        Raises ClusterUnreachable, also where nothing is heard for as long as a request may take, and Refused.
        """
        query = [("fieldSelector", f"metadata.name={name}")]
        timeout = aiohttp.ClientTimeout(total=None, sock_read=REQUEST_SECONDS)
        async for _ in self._watched(_leases(namespace), query, timeout):
            yield None

    async def _watched(
        self, path: str, query: list[tuple[str, str]], timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[bytes]:
        """Each line of a watch: one event in JSON."""
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

    async def review_token(self, token: str) -> Caller | None:
        """Whose pod a report token belongs to; None for a token that is not valid for our audience."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [names.REPORT_AUDIENCE]},
        }
        answer = await self._request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body=body)
        return _caller(answer.get("status", {}))

    async def job_labels(self, caller: Caller) -> dict[str, str] | None:
        """Labels of the Job that controls the caller's pod, if a Finetune controls it; None for any other pod.

        Of a gang, the first pod speaks for all. The pod's own labels prove nothing: whoever may create pods may write
        them.
        """
        pod = await self._get(f"/api/v1/namespaces/{caller.namespace}/pods/{caller.pod_name}")
        if pod is None or pod["metadata"]["uid"] != caller.pod_uid or not _is_first(pod):
            return None
        owner = _controller(pod)
        if owner is None or owner.get("kind") != "Job":
            return None
        job = await self._get(f"/apis/batch/v1/namespaces/{caller.namespace}/jobs/{owner['name']}")
        if job is None or job["metadata"]["uid"] != owner["uid"]:
            return None
        labels, run = dict(job["metadata"].get("labels", {})), _controller(job)
        return labels if run and run.get("kind") == names.KIND and run["uid"] == labels.get(names.LABEL_UID) else None

    async def _get(self, path: str) -> dict[str, Any] | None:
        answer = await self._request("GET", path)
        return answer or None

    async def _list(self, path: str, query: list[tuple[str, str]] | None = None) -> list[dict[str, Any]]:
        answer = await self._request("GET", path, query)
        return list(answer.get("items", []))

    async def _request(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> dict[str, Any]:
        """One request, made again where it fails; done twice it is done once, or a Conflict.

        A GET that finds nothing gives {}; every other refusal is one of our three exceptions.
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
        query: list[tuple[str, str]] | None,
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
        """Ask for nothing while the API server wants to be left alone; only who is the leader cannot wait."""
        left = self._left_alone_until - time.monotonic()
        if left > 0 and not path.startswith(LEASE_API):
            raise ClusterUnreachable(f"the API server wants to be left alone for {left:.1f} s", left)


async def connect(kubeconfig: str | None = None) -> Cluster:
    """The cluster this pod runs in; outside of a pod that of `kubeconfig`, or of the environment's kubeconfig."""
    try:
        config.load_incluster_config()
    except ConfigException:
        await config.load_kube_config(kubeconfig)
    return Cluster(ApiClient())


LONGEST_RETRY_AFTER_SECONDS = 60.0
"""The longest that the API server can make us wait; a Retry-After beyond it is taken for a mistake."""


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
    raise (Invalid if status in (400, 422) else Refused)(text)


def _words_of(event: Mapping[str, Any]) -> str:
    """Reason and message of a warning Event; whoever recorded it may have left out either."""
    return f"{event.get('reason', 'Warning')}: {event.get('message', '')}".rstrip(": ")


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


def _leases(namespace: str) -> str:
    return f"{LEASE_API}/namespaces/{namespace}/leases"


def _finetunes(namespace: str | None) -> str:
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{names.API_VERSION}{scope}/{names.PLURAL}"


def _path_of(manifest: Manifest) -> str:
    group = "api/v1" if manifest["apiVersion"] == "v1" else f"apis/{manifest['apiVersion']}"
    return f"/{group}/namespaces/{manifest['metadata']['namespace']}/{manifest['kind'].lower()}s"


def _controller(body: Mapping[str, Any]) -> dict[str, Any] | None:
    return next((owner for owner in body["metadata"].get("ownerReferences", []) if owner.get("controller")), None)


def _made_for(body: Mapping[str, Any]) -> str | None:
    """Uid of the Finetune that the object was made for: its owner, but of a cleanup Job."""
    owner = _controller(body)
    return owner.get("uid") if owner else body["metadata"].get("labels", {}).get(names.LABEL_CLEANUP_OF)


def _is_first(pod: Mapping[str, Any]) -> bool:
    return str(pod["metadata"].get("annotations", {}).get(names.NODE_RANK_ANNOTATION, 0)) == "0"


def _caller(status: Mapping[str, Any]) -> Caller | None:
    user = status.get("user", {})
    extra, parts = user.get("extra", {}), str(user.get("username", "")).split(":")
    pod_name = extra.get("authentication.kubernetes.io/pod-name", [None])[0]
    pod_uid = extra.get("authentication.kubernetes.io/pod-uid", [None])[0]
    if not status.get("authenticated") or names.REPORT_AUDIENCE not in status.get("audiences", []):
        return None
    if len(parts) != 4 or parts[:2] != ["system", "serviceaccount"] or not pod_name or not pod_uid:
        return None
    return Caller(parts[2], pod_name, pod_uid)
