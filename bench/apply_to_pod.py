"""How long from a created Finetune to its prepare pod, against a bare loop that makes the same objects itself.

`make bench-apply`. A real API server, the real Job controller and the operator as a process, all on this machine; the
two alternate in one run. Each time is from the moment the create request is sent to the moment a pod is listed.
"""

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.names import Stage
from finetune_api.resource import parse_finetune
from finetune_operator.api_server import ApiServer, connect
from finetune_operator.cluster import Cluster, Key
from finetune_operator.manifests import attempt_manifests
from finetune_operator.settings import Settings

from bench.machine import machine
from tests.builders import a_body
from tests.cluster.light import free_port, light_api_server
from tests.operator.operator_process import ROOT, Kubectl, running_operator

ROUNDS = 30
RESULTS = ROOT / "bench" / "results"
SETTINGS = Settings(trainer_image="trainer:test", report_url="http://127.0.0.1:1")


async def pod_of(api: ApiServer, label: str) -> None:
    """Return once a pod with this label is listed."""
    path, query = "/api/v1/namespaces/bench/pods", [("labelSelector", label)]
    while not await api.get_items(path, query):
        await asyncio.sleep(0.005)


async def with_operator(api: ApiServer, number: int) -> float:
    """Seconds from creating a Finetune to its prepare pod."""
    body, started = a_body(f"with-{number}", "bench"), time.perf_counter()
    await api.request("POST", f"/apis/{names.API_VERSION}/namespaces/bench/{names.PLURAL}", body=body)
    await pod_of(api, f"{names.LABEL_NAME}=with-{number}")
    return time.perf_counter() - started


async def bare(api: ApiServer, number: int) -> float:
    """Seconds for the same ConfigMap and Job, written by a loop that decides nothing."""
    body = a_body(f"bare-{number}", "default")
    body["metadata"] |= {"uid": f"{number:08d}-bare"}
    manifests = attempt_manifests(parse_finetune(body), Stage.PREPARE, 1, SETTINGS)
    started = time.perf_counter()
    for manifest in manifests:
        metadata: dict[str, Any] = manifest["metadata"]
        del metadata["ownerReferences"]
        metadata["namespace"] = "bench"
        await Cluster(api).create(manifest)
    await pod_of(api, f"{names.LABEL_NAME}=bare-{number}")
    return time.perf_counter() - started


async def measure(kubeconfig: Path) -> dict[str, list[float]]:
    """Both ways in turn, after one round of each that does not count."""
    api = await connect(str(kubeconfig))
    seconds: dict[str, list[float]] = {"operator": [], "bare loop": []}
    for number in range(ROUNDS + 1):
        taken = {"operator": await with_operator(api, number), "bare loop": await bare(api, number)}
        for way, value in taken.items():
            seconds[way] += [value] if number else []
    assert await Cluster(api).get_finetune(Key("bench", "with-0"))
    await api.close()
    return seconds


def main() -> None:
    """Start everything, measure, write the table, print the ratio last."""
    with tempfile.TemporaryDirectory() as folder, light_api_server(Path(folder) / "cluster") as light:
        kubectl = Kubectl(light.binary("kubectl"), light.kubeconfig)
        kubectl("apply", "-f", str(ROOT / "crds" / "finetunes.yaml"))
        kubectl("create", "namespace", "bench")
        with running_operator(light.kubeconfig, Path(folder), free_port()):
            seconds = asyncio.run(measure(light.kubeconfig))
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    worst = {way: max(values) for way, values in seconds.items()}
    result = {"machine": machine(), "rounds": ROUNDS, "median_seconds": medians, "longest_seconds": worst}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "apply-to-pod.json").write_text(json.dumps(result, indent=1) + "\n")
    for way in seconds:
        print(f"{way:10}  median {medians[way] * 1000:6.0f} ms   longest {worst[way] * 1000:6.0f} ms")
    print(f"{medians['bare loop'] / medians['operator']:.2f} x")


if __name__ == "__main__":
    main()
