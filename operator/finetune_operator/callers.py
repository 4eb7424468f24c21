"""Who calls the operator, by report token, and which run the caller's pod belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api import names

from finetune_operator.api_server import ApiServer
from finetune_operator.observed import controller_of


@dataclass(frozen=True)
class Caller:
    """Who a report token belongs to."""

    namespace: str
    pod_name: str
    pod_uid: str


class Callers:
    """The senders of reports, as the API server knows them."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api

    async def review_token(self, token: str) -> Caller | None:
        """Whose pod a report token belongs to; None for a token that is not valid for our audience."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [names.REPORT_AUDIENCE]},
        }
        answer = await self._api.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body=body)
        return _caller(answer.get("status", {}))

    async def job_labels(self, caller: Caller) -> dict[str, str] | None:
        """Labels of the Job that controls the caller's pod, if a Finetune controls it; None for any other pod.

        Of a gang, the first pod speaks for all. The pod's own labels prove nothing: whoever may create pods may write
        them.
        """
        pod = await self._api.get(f"/api/v1/namespaces/{caller.namespace}/pods/{caller.pod_name}")
        if pod is None or pod["metadata"]["uid"] != caller.pod_uid or not _is_first(pod):
            return None
        owner = controller_of(pod)
        if owner is None or owner.get("kind") != "Job":
            return None
        job = await self._api.get(f"/apis/batch/v1/namespaces/{caller.namespace}/jobs/{owner['name']}")
        if job is None or job["metadata"]["uid"] != owner["uid"]:
            return None
        labels, run = dict(job["metadata"].get("labels", {})), controller_of(job)
        return labels if run and run.get("kind") == names.KIND and run["uid"] == labels.get(names.LABEL_UID) else None


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
