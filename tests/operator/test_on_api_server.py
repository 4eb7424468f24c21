"""The operator against a real API server and its controllers. There is no node: the tests play the kubelet."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from finetune_api import names
from finetune_api.names import Stage
from finetune_api.run import RunResult
from finetune_operator.kueue import workload_names

from tests.builders import a_body, a_failure_message, a_result
from tests.cluster.light import LightCluster, free_port
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
from tests.operator.operator_process import Kubectl, eventually, running_operator

pytestmark = pytest.mark.api_server


def test_a_finetune_goes_the_straight_way_to_a_published_artifact(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("straight"))
    end_pod(kubectl, "straight", Stage.PREPARE, a_result(Stage.PREPARE).to_message())
    end_pod(kubectl, "straight", Stage.TRAIN, a_result(Stage.TRAIN).to_message())
    kubectl("wait", "--for=condition=Succeeded", "finetune/straight", "-n", NAMESPACE, "--timeout=30s")
    status = finetune(kubectl, "straight")["status"]
    assert status["phase"] == "Succeeded"
    assert status["artifact"]["uri"] == "s3://out/a"
    assert status["data"]["rows"] == {"train": 8, "dev": 2, "test": 0, "unused": 0}
    events = kubectl.get("events", "-n", NAMESPACE, "--field-selector", "involvedObject.name=straight")["items"]
    reasons = [event["reason"] for event in events]
    assert {"RowsReady", "ManifestWritten", "Succeeded"} <= set(reasons)
    assert len(reasons) == len(set(reasons)), "an event was told twice"


def test_the_gpu_that_a_run_may_get_is_known_from_its_nodes_before_it_asks_for_one(
    kubectl: Kubectl, operator: Path
) -> None:
    labels = {"zone": "far", "pool": "h100", "nvidia.com/gpu.memory": "81920"}
    taint = {"key": "test", "effect": "NoSchedule"}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "h100-a", "labels": labels}}
    kubectl.apply(node | {"spec": {"taints": [taint]}})
    kubectl.apply(a_body("priced", trainer={"nodeSelector": {"zone": "far"}}, budget={"limit": "0.20"}))
    data = {"tokens": 10_000, "sequences": 8}
    found = a_result(Stage.PREPARE, data=data, effectiveHyperparameters={"epochs": 3})
    end_pod(kubectl, "priced", Stage.PREPARE, found.to_message())
    kubectl("wait", "--for=condition=Stalled", "finetune/priced", "-n", NAMESPACE, "--timeout=30s")
    status = finetune(kubectl, "priced")["status"]
    assert (status["cost"]["gpu"], status["cost"]["estimated"], status["phase"]) == ("H100", "0.21", "Suspended")
    run = kubectl.get("configmap", job_of(kubectl, "priced", Stage.PREPARE)["metadata"]["name"], "-n", NAMESPACE)
    assert json.loads(run["data"]["run.json"])["gpu"] == {"name": "H100", "memoryBytes": 80 * 2**30}
    raised = json.dumps({"spec": {"budget": {"limit": "0.21"}}})
    kubectl("patch", "ft", "priced", "-n", NAMESPACE, "--type=merge", "-p", raised)
    eventually(lambda: job_of(kubectl, "priced", Stage.TRAIN))
    kubectl("delete", "node", "h100-a")


def test_a_finished_finetune_is_never_written_again(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("idle"))
    end_pod(kubectl, "idle", Stage.PREPARE, a_failure_message(Stage.PREPARE, "InvalidData", "ColumnMissing"), 42)
    eventually(lambda: phase(kubectl, "idle") == "Failed")
    version = finetune(kubectl, "idle")["metadata"]["resourceVersion"]
    kubectl("annotate", "finetune", "idle", "-n", NAMESPACE, "touched=yes")
    touched = finetune(kubectl, "idle")["metadata"]["resourceVersion"]
    assert touched != version
    kubectl.apply(a_body("after-idle"))
    eventually(lambda: phase(kubectl, "after-idle"))  # The queue has been worked off by now.
    assert finetune(kubectl, "idle")["metadata"]["resourceVersion"] == touched


def test_bad_data_fails_for_good_and_never_asks_for_a_gpu(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("bad-data"))
    words = "dataset faq, faq.jsonl line 3: column target is missing"
    end_pod(
        kubectl, "bad-data", Stage.PREPARE, a_failure_message(Stage.PREPARE, "InvalidData", "ColumnMissing", words), 42
    )
    eventually(lambda: phase(kubectl, "bad-data") == "Failed")
    status = finetune(kubectl, "bad-data")["status"]
    assert status["failure"]["message"] == words
    conditions = {condition["type"]: condition for condition in status["conditions"]}
    assert conditions["DataValidated"]["status"] == "False"
    assert conditions["Stalled"]["status"] == "True"
    assert not kubectl.get("jobs", "-n", NAMESPACE, "-l", f"{names.LABEL_NAME}=bad-data,{names.LABEL_STAGE}=train")[
        "items"
    ]


def test_an_infrastructure_failure_gets_a_second_job_and_no_more_than_one(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("again"))
    end_pod(kubectl, "again", Stage.PREPARE, a_result(Stage.PREPARE).to_message())
    end_pod(kubectl, "again", Stage.TRAIN, "", 43)
    end_pod(kubectl, "again", Stage.TRAIN, a_result(Stage.TRAIN).to_message(), attempt=2)
    eventually(lambda: phase(kubectl, "again") == "Succeeded")
    status = finetune(kubectl, "again")["status"]
    assert (status["attempts"], status["retries"]) == (2, 1)
    assert "failure" not in status


def test_retries_used_up_are_held_until_the_limit_is_raised(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("held", retryLimit=0))
    end_pod(kubectl, "held", Stage.PREPARE, "", 43)
    eventually(lambda: phase(kubectl, "held") == "Suspended")
    kubectl("patch", "finetune", "held", "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"retryLimit":1}}')
    end_pod(kubectl, "held", Stage.PREPARE, a_result(Stage.PREPARE).to_message(), attempt=2)
    eventually(lambda: job_of(kubectl, "held", Stage.TRAIN))


def test_a_job_that_the_api_server_refuses_fails_with_its_words(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("refused", trainer={"gpuResource": f"example.com/{'x' * 64}"}))
    end_pod(kubectl, "refused", Stage.PREPARE, a_result(Stage.PREPARE).to_message())
    eventually(lambda: phase(kubectl, "refused") == "Failed")
    failure = finetune(kubectl, "refused")["status"]["failure"]
    assert failure["reason"] == "JobInvalid"
    assert "must be no more than 63" in failure["message"]


def test_a_quota_on_jobs_is_told_and_costs_no_endless_writes(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "full"}})
    quota = {"metadata": {"name": "jobs", "namespace": "full"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    kubectl.apply({"apiVersion": "v1", "kind": "ResourceQuota", **quota})
    eventually(lambda: kubectl.get("resourcequota", "jobs", "-n", "full")["status"].get("used"))
    kubectl.apply(a_body("waits", namespace="full"))

    def refused() -> str | None:
        found = kubectl.get("finetune", "waits", "-n", "full")
        conditions = {condition["type"]: condition for condition in found["status"].get("conditions", [])}
        told = conditions.get("Ready", {"message": ""})["message"]
        return str(found["metadata"]["resourceVersion"]) if "exceeded quota" in told else None

    eventually(refused)
    kubectl.apply(a_body("meanwhile"))
    eventually(lambda: job_of(kubectl, "meanwhile", Stage.PREPARE))
    version = refused()
    kubectl.apply(a_body("later"))
    eventually(lambda: job_of(kubectl, "later", Stage.PREPARE))
    assert refused() == version
    kubectl("delete", "resourcequota", "jobs", "-n", "full")
    eventually(lambda: kubectl.get("jobs", "-n", "full")["items"], 40)


def test_deleting_a_finetune_leaves_no_child_behind(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("gone"))
    eventually(lambda: job_of(kubectl, "gone", Stage.PREPARE))
    kubectl("delete", "finetune", "gone", "-n", NAMESPACE, "--timeout=20s")
    selector = f"{names.LABEL_NAME}=gone"
    eventually(lambda: not kubectl.get("jobs,configmaps", "-n", NAMESPACE, "-l", selector)["items"])


def test_a_killed_operator_is_followed_by_one_that_goes_on(
    light_cluster: LightCluster, kubectl: Kubectl, tmp_path: Path
) -> None:
    kubectl.apply(a_body("handover"))
    with running_operator(light_cluster.kubeconfig, tmp_path, free_port()) as first:
        eventually(lambda: job_of(kubectl, "handover", Stage.PREPARE))
        first.kill()
    end_pod(kubectl, "handover", Stage.PREPARE, a_result(Stage.PREPARE).to_message())
    with running_operator(light_cluster.kubeconfig, tmp_path, free_port()):
        end_pod(kubectl, "handover", Stage.TRAIN, a_result(Stage.TRAIN).to_message())
        eventually(lambda: phase(kubectl, "handover") == "Succeeded")


def test_a_run_is_suspended_resumed_and_cancelled(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("paused", suspend=True))
    end_pod(kubectl, "paused", Stage.PREPARE, a_result(Stage.PREPARE).to_message())
    eventually(lambda: phase(kubectl, "paused") == "Suspended")
    assert jobs_of(kubectl, "paused") == ["prepare-1"], "a GPU was asked for"

    patch(kubectl, "paused", suspend=False)
    eventually(lambda: jobs_of(kubectl, "paused") == ["prepare-1", "train-1"])
    patch(kubectl, "paused", suspend=True)
    eventually(lambda: phase(kubectl, "paused") == "Suspended")
    assert jobs_of(kubectl, "paused") == ["prepare-1"]
    patch(kubectl, "paused", suspend=False)
    eventually(lambda: jobs_of(kubectl, "paused") == ["prepare-1", "train-2"])

    patch(kubectl, "paused", cancel=True)
    eventually(lambda: phase(kubectl, "paused") == "Cancelled")
    assert jobs_of(kubectl, "paused") == ["prepare-1"]
    events = kubectl.get("events", "-n", NAMESPACE, "--field-selector", "involvedObject.name=paused")["items"]
    assert [event["count"] for event in events if event["reason"] == "Suspended"] == [2]
    assert [event["count"] for event in events if event["reason"] == "Cancelled"] == [1]


def tell_of_pod(kubectl: Kubectl, pod: str, reason: str, message: str) -> None:
    """A warning, as a kubelet records it."""
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    about = {"apiVersion": "v1", "kind": "Pod", "namespace": NAMESPACE, "name": pod}
    event = {"metadata": {"name": f"{pod}.1", "namespace": NAMESPACE}, "involvedObject": about, "lastTimestamp": now}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": reason, "message": message} | event
    )


def test_a_run_that_cannot_start_is_held_in_the_words_of_whoever_stands_in_the_way(
    kubectl: Kubectl, operator: Path
) -> None:
    """The scheduler and the kubelet are played; the quota is a real one, and the Job controller speaks for it."""
    container = {"name": names.TRAINER_CONTAINER, "image": "trainer", "imageID": "", "ready": False, "restartCount": 0}
    pulling = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "trainer:test"'}}
    creating = {"waiting": {"reason": "ContainerCreating"}}
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are free",
    }
    statuses: dict[str, dict[str, Any]] = {
        "no-node": {"conditions": [unscheduled | {"type": "PodScheduled", "status": "False"}]},
        "no-image": {"containerStatuses": [container | {"state": pulling}]},
        "no-volume": {"containerStatuses": [container | {"state": creating}]},
    }
    words = {
        "no-node": "Unschedulable: 0/3 nodes are free",
        "no-image": 'ImagePullBackOff: Back-off pulling image "trainer:test"',
        "no-volume": "FailedMount: volume claim-0 is gone",
        "no-quota": "exceeded quota: pods, requested: count/pods=1, used: count/pods=0, limited: count/pods=0",
    }
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "no-pods"}})
    quota = {"metadata": {"name": "pods", "namespace": "no-pods"}, "spec": {"hard": {"count/pods": "0"}}}
    kubectl.apply({"apiVersion": "v1", "kind": "ResourceQuota", **quota})
    eventually(lambda: kubectl.get("resourcequota", "pods", "-n", "no-pods")["status"].get("used"))
    kubectl.apply(a_body("no-quota", namespace="no-pods", pendingDeadlineSeconds=12))
    for name, status in statuses.items():
        kubectl.apply(a_body(name, pendingDeadlineSeconds=12))
        pod = eventually(lambda: pod_of(kubectl, job_of(kubectl, name, Stage.PREPARE)))["metadata"]["name"]  # noqa: B023
        kubectl.set_status("pod", NAMESPACE, pod, status)
        if name == "no-volume":
            tell_of_pod(kubectl, pod, "FailedMount", "volume claim-0 is gone")

    def messages() -> dict[str, str]:
        places = {name: NAMESPACE if name in statuses else "no-pods" for name in words}
        found = {name: kubectl.get("finetune", name, "-n", place)["status"] for name, place in places.items()}
        assert {status.get("phase") for status in found.values()} == {"Suspended"}
        return {name: status["failure"]["message"] for name, status in found.items()}

    told = eventually(messages, 40)
    for name, expected in words.items():
        assert expected in told[name]
    eventually(lambda: jobs_of(kubectl, "no-node") == [])
    patch(kubectl, "no-node", pendingDeadlineSeconds=600)
    eventually(lambda: jobs_of(kubectl, "no-node") == ["prepare-2"])


def test_a_finished_run_is_removed_with_its_children_when_its_time_is_up(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("brief", ttlSecondsAfterFinished=1))
    words = a_failure_message(Stage.PREPARE, "InvalidData", "ColumnMissing")
    end_pod(kubectl, "brief", Stage.PREPARE, words, 42)
    eventually(
        lambda: not kubectl.get("finetunes", "-n", NAMESPACE, "--field-selector", "metadata.name=brief")["items"]
    )
    eventually(lambda: jobs_of(kubectl, "brief") == [])


def test_a_queue_lets_each_job_go(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("queued", queue={"name": "gpus", "priorityClassName": "high"}))
    eventually(lambda: phase(kubectl, "queued") == "Queued")
    job = job_of(kubectl, "queued", Stage.PREPARE)
    assert job["metadata"]["labels"][names.QUEUE_LABEL] == "gpus"
    assert job["metadata"]["labels"][names.QUEUE_PRIORITY_LABEL] == "high"
    patch(kubectl, "queued", queue={"priorityClassName": "urgent"})
    eventually(lambda: priority_of(kubectl, "queued") == "urgent")
    suspend_job(kubectl, job, False)
    end_pod(kubectl, "queued", Stage.PREPARE, a_result(Stage.PREPARE).to_message())
    eventually(lambda: job_of(kubectl, "queued", Stage.TRAIN)["spec"]["suspend"] is True)


def test_a_job_that_its_queue_takes_back_is_followed_and_its_words_are_told(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("taken", queue={"name": "gpus"}))
    job = eventually(lambda: job_of(kubectl, "taken", Stage.PREPARE))
    suspend_job(kubectl, job, False)
    start_pod(kubectl, "taken", Stage.PREPARE)
    eventually(lambda: phase(kubectl, "taken") == "Preparing")
    suspend_job(kubectl, job, True)
    eventually(lambda: phase(kubectl, "taken") == "Queued")
    (workload,) = workload_names(job["metadata"]["name"], job["metadata"]["uid"])
    about = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload", "namespace": NAMESPACE, "name": workload}
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    event = {"metadata": {"name": "pending", "namespace": NAMESPACE}, "involvedObject": about, "lastTimestamp": now}
    words = "insufficient unused quota for nvidia.com/gpu"
    event |= {"type": "Warning", "reason": "Pending", "message": words}
    kubectl.apply({"apiVersion": "v1", "kind": "Event", **event})
    eventually(lambda: words in ready_message(kubectl, "taken"), 40)
    suspend_job(kubectl, job, False)
    start_pod(kubectl, "taken", Stage.PREPARE)
    eventually(lambda: phase(kubectl, "taken") == "Preparing")
    assert jobs_of(kubectl, "taken") == ["prepare-1"]


def suspend_job(kubectl: Kubectl, job: dict[str, Any], suspend: bool) -> None:
    """What a queue does with a Job."""
    body = json.dumps({"spec": {"suspend": suspend}})
    kubectl("patch", "job", job["metadata"]["name"], "-n", NAMESPACE, "--type=merge", "-p", body)


def priority_of(kubectl: Kubectl, name: str) -> str:
    return str(job_of(kubectl, name, Stage.PREPARE)["metadata"]["labels"][names.QUEUE_PRIORITY_LABEL])


def ready_message(kubectl: Kubectl, name: str) -> str:
    conditions = finetune(kubectl, name)["status"]["conditions"]
    return str(next(condition["message"] for condition in conditions if condition["type"] == "Ready"))


def gang_of(kubectl: Kubectl, name: str, attempt: int) -> list[dict[str, Any]]:
    """The two pods of the attempt, the first one first."""
    job = job_of(kubectl, name, Stage.TRAIN, attempt)["metadata"]["name"]
    items = kubectl.get("pods", "-n", NAMESPACE, "-l", f"job-name={job}")["items"]
    assert len(items) == 2
    return sorted(items, key=lambda pod: str(pod["metadata"]["annotations"][names.NODE_RANK_ANNOTATION]))


def test_a_gang_meets_by_name_and_the_loss_of_one_pod_ends_all(kubectl: Kubectl, operator: Path, port: int) -> None:
    kubectl.apply(a_body("gang", trainer={"nodes": 2, "gpusPerNode": 0, "podLabels": {"team": "a"}}))
    end_pod(kubectl, "gang", Stage.PREPARE, a_result(Stage.PREPARE).to_message())
    first, second = eventually(lambda: gang_of(kubectl, "gang", 1))
    (service,) = kubectl.get("services", "-n", NAMESPACE, "-l", f"{names.LABEL_NAME}=gang")["items"]
    assert first["spec"]["hostname"] == f"{first['metadata']['labels']['job-name']}-0"
    assert first["spec"]["subdomain"] == service["metadata"]["name"]
    assert first["metadata"]["labels"]["team"] == "a"
    own = {"namespace": NAMESPACE, "name": "gang", "uid": finetune(kubectl, "gang")["metadata"]["uid"]}
    said = {"identity": own, "stage": "train", "activity": "training"}
    assert report(port, token_of(kubectl, second["metadata"]["name"]), **said) == 403
    assert report(port, token_of(kubectl, first["metadata"]["name"]), **said) == 204
    end_this_pod(kubectl, second, a_failure_message(Stage.TRAIN, "GpuOutOfMemory", "GpuOutOfMemory"), 44)
    first, second = eventually(lambda: gang_of(kubectl, "gang", 2))
    assert finetune(kubectl, "gang")["status"]["memoryRung"] == 1
    end_this_pod(kubectl, second, RunResult(stage=Stage.TRAIN).to_message())
    end_this_pod(kubectl, first, a_result(Stage.TRAIN).to_message())
    eventually(lambda: phase(kubectl, "gang") == "Succeeded")
    assert finetune(kubectl, "gang")["status"]["attempts"] == 2
    kubectl("delete", "finetune", "gang", "-n", NAMESPACE, "--timeout=20s")
    selector = f"{names.LABEL_NAME}=gang"
    eventually(lambda: not kubectl.get("jobs,configmaps,services,pods", "-n", NAMESPACE, "-l", selector)["items"])


def test_a_finetune_of_another_controller_is_never_touched(kubectl: Kubectl, operator: Path) -> None:
    kubectl.apply(a_body("theirs", managedBy="example.com/another"))
    version = finetune(kubectl, "theirs")["metadata"]["resourceVersion"]
    kubectl.apply(a_body("ours"))
    eventually(lambda: job_of(kubectl, "ours", Stage.PREPARE))
    assert finetune(kubectl, "theirs")["metadata"]["resourceVersion"] == version
    assert jobs_of(kubectl, "theirs") == []


def report(port: int, token: str, **changes: Any) -> int:
    """POST a report; returns the HTTP status."""
    body = {
        "stage": "prepare",
        "attempt": 1,
        "activity": "preparing",
        "progress": {"step": 7, "totalSteps": 9},
    } | changes
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/progress",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def token_of(kubectl: Kubectl, pod: str, audience: str = names.REPORT_AUDIENCE, namespace: str = NAMESPACE) -> str:
    """A token bound to the pod, as the kubelet projects it."""
    uid = kubectl("get", "pod", pod, "-n", namespace, "-o", "jsonpath={.metadata.uid}")
    bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod}", f"--bound-object-uid={uid}"]
    return kubectl("create", "token", "default", "-n", namespace, f"--audience={audience}", *bound).strip()


def token_of_an_impostor(kubectl: Kubectl, namespace: str, labels: dict[str, str]) -> str:
    """The token of a pod that somebody has made with the labels of a run's own."""
    meta = {"name": "impostor", "namespace": namespace, "labels": labels}
    spec = {"containers": [{"name": names.TRAINER_CONTAINER, "image": "trainer"}]}
    kubectl("get", "serviceaccount", "default", "-n", namespace)
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    return token_of(kubectl, "impostor", namespace=namespace)


def test_only_a_pod_of_the_run_itself_can_report_its_progress(kubectl: Kubectl, operator: Path, port: int) -> None:
    kubectl.apply(a_body("reports"))
    kubectl.apply(a_body("other"))
    pod = eventually(lambda: pod_of(kubectl, job_of(kubectl, "reports", Stage.PREPARE)))["metadata"]["name"]
    eventually(lambda: job_of(kubectl, "other", Stage.PREPARE))
    token = token_of(kubectl, pod)
    own = {"namespace": NAMESPACE, "name": "reports", "uid": finetune(kubectl, "reports")["metadata"]["uid"]}
    other = {"namespace": NAMESPACE, "name": "other", "uid": finetune(kubectl, "other")["metadata"]["uid"]}
    assert report(port, token, identity=other) == 403
    assert report(port, "forged", identity=own) == 403
    assert report(port, "", identity=own) == 403
    assert report(port, token_of(kubectl, pod, "https://elsewhere.test"), identity=own) == 403
    assert report(port, token, identity=own, attempt=2) == 403
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-b"}})
    labels = job_of(kubectl, "reports", Stage.PREPARE)["metadata"]["labels"]
    for namespace in (NAMESPACE, "team-b"):
        impostor = eventually(partial(token_of_an_impostor, kubectl, namespace, labels))
        assert report(port, impostor, identity=own) == 403
    assert report(port, token, identity=own, stage="nonsense") == 400
    assert report(port, token, identity=own, metrics={"trainingLoss": float("nan")}) == 400
    assert report(port, token, identity=own, pad="x" * names.REPORT_MAX_BYTES) == 413
    assert report(port, token, identity=own) == 204
    assert report(port, token, identity=own) == 429
    eventually(lambda: finetune(kubectl, "reports")["status"].get("progress", {}).get("step") == 7)
    assert "progress" not in finetune(kubectl, "other")["status"]


HUGGING_FACE = """
import torch, transformers
class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))
    def forward(self, x, labels):
        return {"loss": ((self.slope * x - labels) ** 2).mean()}
rows = [{"x": torch.tensor(float(x)), "labels": torch.tensor(2.0 * x)} for x in range(8)]
options = transformers.TrainingArguments("out", max_steps=3, logging_steps=1, use_cpu=True, save_strategy="no")
transformers.Trainer(Line(), options, train_dataset=rows).train()
"""
"""What somebody who has never heard of this operator may run in its pods."""


def test_any_hugging_face_training_reports_by_what_its_pod_finds_in_its_environment(
    kubectl: Kubectl, operator: Path, port: int, tmp_path: Path
) -> None:
    kubectl.apply(a_body("hugging-face"))
    end_pod(kubectl, "hugging-face", Stage.PREPARE, a_result(Stage.PREPARE).to_message())
    pod = eventually(lambda: pod_of(kubectl, job_of(kubectl, "hugging-face", Stage.TRAIN)))
    start_pod(kubectl, "hugging-face", Stage.TRAIN)
    token = tmp_path / "token"  # As the kubelet would project it, but for its place.
    token.write_text(token_of(kubectl, pod["metadata"]["name"]))
    [container] = pod["spec"]["containers"]
    given = {entry["name"]: entry.get("value", "") for entry in container["env"] if entry["name"].startswith("KUBEF")}
    assert given[names.ENV_KUBEFLOW_TOKEN_FILE] == names.TOKEN_FILE
    environment = os.environ | given | {names.ENV_KUBEFLOW_TOKEN_FILE: str(token)}
    command = [sys.executable, "-c", HUGGING_FACE]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)

    def done() -> bool:
        told = finetune(kubectl, "hugging-face")["status"].get("progress", {})
        assert told.get("percent") == 100, (told, metrics_of(port))
        return True

    eventually(done, 40)
    status = finetune(kubectl, "hugging-face")["status"]
    assert (status["progress"]["step"], status["progress"]["totalSteps"], status["phase"]) == (3, 3, "Training")
    assert status["metrics"]["trainingLoss"] > 0
    assert status["history"][-1]["step"] == 3


def metrics_of(port: int) -> dict[str, float]:
    """Value of each series that the operator shows, by its name with labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_the_operator_tells_prometheus_what_it_does_and_how_the_runs_stand(
    kubectl: Kubectl, operator: Path, port: int
) -> None:
    before = metrics_of(port)
    kubectl.apply(a_body("measured", trainer={"gpusPerNode": 2}))
    end_pod(kubectl, "measured", Stage.PREPARE, a_result(Stage.PREPARE).to_message())
    start_pod(kubectl, "measured", Stage.TRAIN)
    eventually(lambda: phase(kubectl, "measured") == "Training")
    during = eventually(lambda: (now := metrics_of(port))['finetune_gpus{phase="Training"}'] >= 2 and now)
    end_pod(kubectl, "measured", Stage.TRAIN, a_failure_message(Stage.TRAIN, "Diverged", "LossNotFinite"), 45)
    eventually(lambda: phase(kubectl, "measured") == "Failed")
    after = eventually(lambda: (now := metrics_of(port))['finetune_runs{phase="Failed"}'] > before[
        'finetune_runs{phase="Failed"}'] and now)  # fmt: skip

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert during['finetune_runs{phase="Training"}'] > before['finetune_runs{phase="Training"}']
    assert grown('finetune_finished_total{phase="Failed"}') == 1
    assert grown('finetune_attempt_failures_total{class="Diverged"}') == 1
    assert grown('finetune_runs_stalled{class="Diverged"}') == 1
    assert grown("finetune_status_writes_total") >= 4
    assert grown('finetune_reconciles_total{outcome="ok"}') >= 4
    assert grown('finetune_api_requests_total{code="201",verb="POST"}') >= 4
    assert after["finetune_leader"] == 1
    assert after["finetune_heartbeat_age_seconds"] < 30


def test_the_operator_leaves_within_its_grace_period_when_told_to(
    light_cluster: LightCluster, kubectl: Kubectl, tmp_path: Path
) -> None:
    number = free_port()
    with running_operator(light_cluster.kubeconfig, tmp_path, number) as process:
        eventually(lambda: urllib.request.urlopen(f"http://127.0.0.1:{number}/readyz", timeout=2).status == 200, 20)
        process.terminate()
        assert process.wait(25) == 0


def test_a_wrong_settings_file_is_one_plain_line(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("trainerImage: a\nreportUrl: b\nretryWait: 3\n")
    done = subprocess.run(
        [sys.executable, "-m", "finetune_operator", "--settings", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"{file}: retryWait: Extra inputs are not permitted\n"
