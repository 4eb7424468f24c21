"""On a real API server: lost results, deletion with files and without, and pods whose node is lost."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from finetune_api import names
from finetune_api.names import CLEANUP_FINALIZER, Stage
from finetune_api.run import CleanupResult
from finetune_api.status import Failure

from tests.builders import a_body, a_failure_message, a_result
from tests.operator.kubelet import (
    NAMESPACE,
    end_pod,
    end_this_pod,
    finetune,
    job_of,
    jobs_of,
    patch,
    phase,
    pod_of,
    start_pod,
)
from tests.operator.operator_process import Kubectl, eventually

pytestmark = pytest.mark.api_server
DELETE: dict[str, Any] = {"output": {"uri": "s3://out/models", "deletionPolicy": "Delete"}}
BAD_DATA = a_failure_message(Stage.PREPARE, "InvalidData", "ColumnMissing")


def errand_of(kubectl: Kubectl, name: str, uid: str, errand: str) -> dict[str, Any]:
    return kubectl.get("job", f"{name}-{uid[:8]}-{errand}", "-n", NAMESPACE)


def end_errand(kubectl: Kubectl, job: dict[str, Any], message: str, code: int = 0) -> None:
    end_this_pod(kubectl, eventually(lambda: pod_of(kubectl, job)), message, code)


def uid_of(kubectl: Kubectl, name: str) -> str:
    return str(finetune(kubectl, name)["metadata"]["uid"])


def is_there(kubectl: Kubectl, name: str) -> bool:
    return bool(kubectl("get", "finetune", name, "-n", NAMESPACE, "--ignore-not-found"))


def delete(kubectl: Kubectl, *names: str) -> None:
    kubectl("delete", "finetune", *names, "-n", NAMESPACE, "--wait=false")


def last_words(kubectl: Kubectl, uid: str) -> list[tuple[str, str]]:
    """Reason and message of what was told of a cleanup."""
    events = kubectl.get("events", "-n", NAMESPACE, "--field-selector", f"involvedObject.uid={uid}")["items"]
    return [(event["reason"], event["message"]) for event in events if event["reason"].startswith("Clean")]


def test_a_job_whose_message_is_garbled_is_read_from_s3_and_not_done_again(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("garbled"))
    end_pod(kubectl, "garbled", Stage.PREPARE, '{"stage": "prep')
    uid = uid_of(kubectl, "garbled")
    end_errand(
        kubectl,
        eventually(lambda: errand_of(kubectl, "garbled", uid, "result-p1")),
        a_result(Stage.PREPARE).to_message(),
    )
    end_pod(kubectl, "garbled", Stage.TRAIN, "")
    reading = eventually(lambda: errand_of(kubectl, "garbled", uid, "result-t1"))
    end_errand(kubectl, reading, a_result(Stage.TRAIN).to_message())
    eventually(lambda: phase(kubectl, "garbled") == "Succeeded")
    status = finetune(kubectl, "garbled")["status"]
    assert (status["artifact"]["uri"], status["attempts"], status["retries"]) == ("s3://out/a", 1, 0)
    kubectl("delete", "finetune", "garbled", "-n", NAMESPACE, "--timeout=20s")
    selector = f"{names.LABEL_NAME}=garbled"
    eventually(lambda: not kubectl.get("jobs,pods", "-n", NAMESPACE, "-l", selector)["items"])


def test_a_run_that_is_deleted_with_its_files_goes_when_they_have_gone(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("with-files", **DELETE))
    eventually(lambda: job_of(kubectl, "with-files", Stage.PREPARE))
    found = finetune(kubectl, "with-files")["metadata"]
    assert found["finalizers"] == [CLEANUP_FINALIZER]
    delete(kubectl, "with-files")
    cleanup = eventually(lambda: errand_of(kubectl, "with-files", found["uid"], "cleanup"))
    assert "ownerReferences" not in cleanup["metadata"]
    selector = f"{names.LABEL_UID}={found['uid']}"
    assert not kubectl.get("jobs,pods", "-n", NAMESPACE, "-l", selector)["items"], "one of them may still write"
    end_errand(kubectl, cleanup, CleanupResult(removed=12).to_message())
    eventually(lambda: not is_there(kubectl, "with-files"))
    root = f"s3://out/models/{NAMESPACE}/with-files/{found['uid']}"
    eventually(lambda: last_words(kubectl, found["uid"]) == [("CleanedUp", f"12 objects were removed below {root}")])


def test_a_run_whose_time_is_up_goes_although_its_files_cannot_be_removed(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("denied", ttlSecondsAfterFinished=1, **DELETE))
    end_pod(kubectl, "denied", Stage.PREPARE, BAD_DATA, 42)
    uid = uid_of(kubectl, "denied")
    cleanup = eventually(lambda: errand_of(kubectl, "denied", uid, "cleanup"))
    failure = {"class": "AccessDenied", "reason": "AccessDenied", "message": "DeleteObject was denied"}
    message = CleanupResult(failure=Failure.model_validate(failure)).to_message()
    end_errand(kubectl, cleanup, message, 42)
    eventually(lambda: not is_there(kubectl, "denied"))
    ((reason, words),) = eventually(lambda: last_words(kubectl, uid))
    assert reason == "CleanupFailed"
    assert "DeleteObject was denied" in words


def test_a_namespace_that_is_deleted_waits_for_no_files(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "closing"}})
    kubectl.apply(a_body("closing", namespace="closing", **DELETE))
    eventually(lambda: kubectl.get("jobs", "-n", "closing")["items"])
    kubectl("delete", "namespace", "closing", "--wait=false")
    eventually(lambda: not kubectl.get("finetunes", "-n", "closing")["items"])
    eventually(lambda: "is being terminated" in operator.read_text(), 5)


def test_a_run_that_is_deleted_leaves_nothing_in_whatever_phase_it_is(kubectl: Kubectl, operator: Path) -> None:
    gang = {"nodes": 2, "gpusPerNode": 0}
    bodies: dict[str, dict[str, Any]] = {
        "Pending": {},
        "Preparing": {},
        "Queued": {"queue": {"name": "gpus"}},
        "Training": {},
        "Suspended": {"suspend": True},
        "Failed": {},
        "Succeeded": {"trainer": gang},
        "Cancelled": {"cancel": True},
    }
    wanted = {name.lower(): name for name in bodies}
    for name, spec in bodies.items():
        kubectl.apply(a_body(name.lower(), **spec))
    start_pod(kubectl, "preparing", Stage.PREPARE)
    for name in ("training", "suspended", "succeeded"):
        end_pod(kubectl, name, Stage.PREPARE, a_result(Stage.PREPARE).to_message())
    start_pod(kubectl, "training", Stage.TRAIN)
    end_pod(kubectl, "failed", Stage.PREPARE, BAD_DATA, 42)
    train = eventually(lambda: job_of(kubectl, "succeeded", Stage.TRAIN))["metadata"]["name"]
    pods = eventually(lambda: kubectl.get("pods", "-n", NAMESPACE, "-l", f"job-name={train}")["items"])
    for pod in pods:
        end_this_pod(kubectl, pod, a_result(Stage.TRAIN).to_message())
    eventually(lambda: {name: phase(kubectl, name) for name in wanted} == wanted)

    delete(kubectl, *wanted)
    kinds, selector = "finetunes,jobs,pods,configmaps,services", f"{names.LABEL_NAME} in ({','.join(wanted)})"
    eventually(lambda: not kubectl.get(kinds, "-n", NAMESPACE, "-l", selector)["items"])
    assert not any(is_there(kubectl, name) for name in wanted)


def test_whether_the_files_go_too_cannot_be_changed(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("decided", suspend=True))
    with pytest.raises(AssertionError, match="output"):
        patch(kubectl, "decided", **DELETE)


def make_node(kubectl: Kubectl, name: str, ready: bool) -> None:
    """A node whose kubelet has last said that it is ready, or that it is not."""
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
    kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    condition = {"type": "Ready", "status": str(ready), "reason": "KubeletSaysSo", **times}
    body = {"conditions": [condition]}
    kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": body}))


def bind(kubectl: Kubectl, pod: str, node: str) -> None:
    """What a scheduler does."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/binding"
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
    kubectl("create", "--raw", path, "-f", "-", stdin=binding)


def test_a_pod_on_a_lost_node_is_removed_and_the_run_goes_on(kubectl: Kubectl, operator: Path) -> None:
    pods = {}
    for name, ready in {"node-well": True, "node-lost": False}.items():
        make_node(kubectl, name, ready)
        kubectl.apply(a_body(name))
        end_pod(kubectl, name, Stage.PREPARE, a_result(Stage.PREPARE).to_message())
        pods[name] = eventually(lambda: pod_of(kubectl, job_of(kubectl, name, Stage.TRAIN)))["metadata"]["name"]  # noqa: B023
        bind(kubectl, pods[name], name)
        start_pod(kubectl, name, Stage.TRAIN)
        eventually(lambda: phase(kubectl, name) == "Training")  # noqa: B023
    kubectl("delete", "pod", *pods.values(), "-n", NAMESPACE, "--grace-period=1", "--wait=false")
    eventually(lambda: job_of(kubectl, "node-lost", Stage.TRAIN, 2))
    status = finetune(kubectl, "node-lost")["status"]
    assert (status["restarts"], status["retries"]) == (1, 0)
    events = kubectl.get("events", "-n", NAMESPACE, "--field-selector", "reason=NodeLost")["items"]
    assert [event["involvedObject"]["name"] for event in events] == ["node-lost"]
    assert "its node node-lost is not ready (KubeletSaysSo)" in events[0]["message"]
    assert kubectl.get("pod", pods["node-well"], "-n", NAMESPACE)["metadata"]["deletionTimestamp"]
    assert finetune(kubectl, "node-well")["status"]["attempts"] == 1
    assert pods["node-lost"] not in kubectl("get", "pods", "-n", NAMESPACE, "-o", "name")

    patch(kubectl, "node-well", suspend=True)
    eventually(lambda: job_of(kubectl, "node-well", Stage.TRAIN)["metadata"].get("deletionTimestamp"))
    kubectl("delete", "node", "node-well")
    eventually(lambda: phase(kubectl, "node-well") == "Suspended")
    assert jobs_of(kubectl, "node-well") == ["prepare-1"]
