"""There is no node in these tests: they play the kubelet, and look at what the operator has made of it."""

import json
from datetime import UTC, datetime
from typing import Any, cast

from finetune_api import names
from finetune_api.names import Stage

from tests.operator.operator_process import Kubectl, eventually

NAMESPACE = "team-a"


def finetune(kubectl: Kubectl, name: str) -> dict[str, Any]:
    return kubectl.get("finetune", name, "-n", NAMESPACE)


def job_of(kubectl: Kubectl, name: str, stage: Stage, attempt: int = 1) -> dict[str, Any]:
    selector = f"{names.LABEL_NAME}={name},{names.LABEL_STAGE}={stage},{names.LABEL_ATTEMPT}={attempt}"
    items = kubectl.get("jobs", "-n", NAMESPACE, "-l", selector)["items"]
    assert len(items) == 1, f"{len(items)} Jobs of {stage} attempt {attempt}"
    return dict(items[0])


def pod_of(kubectl: Kubectl, job: dict[str, Any]) -> dict[str, Any]:
    items = kubectl.get("pods", "-n", NAMESPACE, "-l", f"job-name={job['metadata']['name']}")["items"]
    assert len(items) == 1
    return dict(items[0])


def end_pod(kubectl: Kubectl, name: str, stage: Stage, message: str, code: int = 0, attempt: int = 1) -> None:
    """Let the attempt's pod end as a kubelet would write it; the Job controller does the rest."""
    end_this_pod(kubectl, eventually(lambda: pod_of(kubectl, job_of(kubectl, name, stage, attempt))), message, code)


def end_this_pod(kubectl: Kubectl, pod: dict[str, Any], message: str, code: int = 0) -> None:
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    times = {"startedAt": now, "finishedAt": now}
    state = {"terminated": {"exitCode": code, "message": message, "reason": "Completed", **times}}
    container = {"name": names.TRAINER_CONTAINER, "image": "trainer", "imageID": "", "ready": False, "restartCount": 0}
    status = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container | {"state": state}]}
    kubectl.set_status("pod", NAMESPACE, pod["metadata"]["name"], status)


def phase(kubectl: Kubectl, name: str) -> str | None:
    return cast("str | None", finetune(kubectl, name)["status"].get("phase"))


def jobs_of(kubectl: Kubectl, name: str) -> list[str]:
    """Stage and attempt of each Job of a Finetune."""
    items = kubectl.get("jobs", "-n", NAMESPACE, "-l", f"{names.LABEL_NAME}={name}")["items"]
    labels = [item["metadata"]["labels"] for item in items]
    return sorted(f"{label[names.LABEL_STAGE]}-{label[names.LABEL_ATTEMPT]}" for label in labels)


def patch(kubectl: Kubectl, name: str, **spec: Any) -> None:
    kubectl("patch", "finetune", name, "-n", NAMESPACE, "--type=merge", "-p", json.dumps({"spec": spec}))


def start_pod(kubectl: Kubectl, name: str, stage: Stage) -> None:
    """Let the pod run as a kubelet would write it."""
    pod = eventually(lambda: pod_of(kubectl, job_of(kubectl, name, stage)))
    container = {"name": names.TRAINER_CONTAINER, "image": "trainer", "imageID": "", "ready": True, "restartCount": 0}
    state = {"running": {"startedAt": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}}
    status = {"phase": "Running", "containerStatuses": [container | {"state": state}]}
    kubectl.set_status("pod", NAMESPACE, pod["metadata"]["name"], status)
