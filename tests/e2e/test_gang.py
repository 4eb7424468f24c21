"""Two real pods that train one model: the same as one pod does, also when one of them is lost on the way."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.installed import BUCKET, GANG_STEPS, NAMESPACE, POD, Product, a_run

pytestmark = pytest.mark.cluster


GANG = {
    "hyperparameters": GANG_STEPS | {"trainBatchSize": 2},
    "trainer": POD | {"nodes": 2, "terminationGracePeriodSeconds": 30},
}


@contextmanager
def watched(runs: Product, name: str, file: Path) -> Iterator[None]:
    """Everything that becomes of the run's train pods, written to `file` as it happens."""
    selector = f"finetune-operator.io/name={name},finetune-operator.io/stage=train"
    command = ["get", "pods", "-n", NAMESPACE, "-l", selector, "--watch", "--output-watch-events", "-o", "json"]
    with file.open("w") as out:
        kubectl = [str(runs.kubectl.program), "--kubeconfig", str(runs.kubectl.kubeconfig)]
        process = subprocess.Popen([*kubectl, *command], stdout=out)
        try:
            yield
        finally:
            process.terminate()
            process.wait(10)


def attempts_at_once(file: Path) -> list[set[str]]:
    """After each event, the attempts that had a pod which was not over."""
    text, decoder, found = file.read_text().strip(), json.JSONDecoder(), []
    active: dict[str, str] = {}
    while text:
        event, end = decoder.raw_decode(text)
        text, pod = text[end:].strip(), event["object"]
        active.pop(pod["metadata"]["name"], None)
        if event["type"] != "DELETED" and pod["status"].get("phase") in ("Pending", "Running", "Unknown"):
            active[pod["metadata"]["name"]] = pod["metadata"]["labels"]["finetune-operator.io/attempt"]
        found.append(set(active.values()))
    return found


def test_two_pods_train_what_one_does_although_one_of_them_is_lost(runs: Product, tmp_path: Path) -> None:
    runs.kubectl.apply(a_run("gang", **GANG))

    def story() -> str:
        return runs.story("gang")

    with watched(runs, "gang", tmp_path / "events.json"):
        runs.eventually(lambda: runs.saved_step("gang") > 0, 300, story)
        (worker,) = [pod for pod in runs.train_pods("gang") if pod["metadata"]["name"].split("-")[-2] == "1"]
        runs.kubectl("delete", "pod", worker["metadata"]["name"], "-n", NAMESPACE, "--wait=false")
        status = runs.ended("gang")
    assert status["phase"] == "Succeeded", story()
    assert (status["attempts"], status["restarts"], status["retries"]) == (2, 1, 0), story()
    seen = attempts_at_once(tmp_path / "events.json")
    assert {"1"} in seen
    assert {"2"} in seen
    assert all(len(attempts) <= 1 for attempts in seen), "two gangs at once"

    steps = [row["step"] for row in runs.read_lines(f"{status['artifact']['uri']}/training_log.jsonl")]
    assert steps == sorted(set(steps)), "a step was trained twice, or is not told"
    assert status["effectiveHyperparameters"]["devices"] == 2
    alone = runs.ended("alone")
    for value in ("base", "tuned"):
        expected = alone["evaluation"]["perplexity"][value]
        assert status["evaluation"]["perplexity"][value] == pytest.approx(expected, rel=1e-2), value
    assert status["data"]["tokens"] == alone["data"]["tokens"]
    root = status["artifact"]["manifestUri"].removeprefix(f"s3://{BUCKET}/").removesuffix("manifest.json")
    artifacts = [key for key in runs.keys_of("gang") if key.startswith(f"{root}artifacts/")]
    assert len({key.removeprefix(root).split("/")[1] for key in artifacts}) == 1, "two pods have published"
