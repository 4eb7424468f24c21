"""Runs that are interrupted, with real pods and a real S3: what was learned is not lost, and nothing is done twice."""

import pytest

from tests.e2e.installed import NAMESPACE, Product

pytestmark = pytest.mark.cluster


def test_a_run_that_is_suspended_and_then_loses_its_pod_ends_as_if_nothing_had_happened(runs: Product) -> None:
    name = "interrupted"

    def story() -> str:
        return runs.story(name)

    runs.eventually(lambda: runs.finetune(name)["status"]["phase"] == "Suspended", 300, story)
    assert runs.train_pods(name) == [], "a run that was created suspended holds a GPU"
    runs.change(name, suspend=False)
    runs.eventually(lambda: runs.saved_step(name) > 0, 120, story)
    runs.change(name, suspend=True)
    runs.eventually(lambda: runs.finetune(name)["status"]["phase"] == "Suspended", 60, story)
    paused_at = runs.saved_step(name)
    assert runs.train_pods(name) == [], "a suspended run holds its GPU"

    runs.change(name, suspend=False)
    runs.eventually(lambda: runs.saved_step(name) > paused_at, 120, story)
    status = runs.finetune(name)["status"]
    assert status["attempts"] == 2, story()
    (pod,) = runs.train_pods(name)
    runs.kubectl("delete", "pod", pod["metadata"]["name"], "-n", NAMESPACE, "--wait=false")

    status = runs.ended(name)
    assert status["phase"] == "Succeeded", story()
    assert (status["attempts"], status["restarts"], status["retries"]) == (3, 1, 0), story()
    steps = [row["step"] for row in status["history"]]
    assert steps == sorted(set(steps)), "a step was told twice"
    log = runs.read_lines(f"{status['artifact']['uri']}/training_log.jsonl")
    told = [row["step"] for row in log]
    assert told == sorted(set(told)), "a step was trained twice, or is not told"
    assert set(range(100, 3001, 100)) <= set(told)
