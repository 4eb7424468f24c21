"""Runs that their user ends in the middle of training, with real pods and a real S3."""

import pytest

from tests.e2e.installed import NAMESPACE, Product

pytestmark = pytest.mark.cluster


def test_a_cancelled_run_keeps_its_checkpoints_and_publishes_nothing(runs: Product) -> None:
    name = "cancelled"
    runs.eventually(lambda: runs.saved_step(name) > 0, 300, lambda: runs.story(name))
    runs.change(name, cancel=True)
    runs.eventually(lambda: runs.finetune(name)["status"]["phase"] == "Cancelled", 60, lambda: runs.story(name))
    assert runs.train_pods(name) == []
    keys = runs.keys_of(name)
    assert [key for key in keys if "/checkpoints/step-" in key and key.endswith("/manifest.json")]
    assert runs.published_by(name) == []


def test_deleting_a_run_with_its_files_in_the_middle_of_training_leaves_neither_pod_nor_object(runs: Product) -> None:
    def trains() -> bool:
        return bool(runs.finetune("deleted")["status"].get("progress", {}).get("step", 0) > 0)

    runs.eventually(trains, 300, lambda: runs.story("deleted"))

    def own() -> list[str]:  # Earlier tests may have left others of this name.
        return [key for key in runs.keys_of("deleted") if f"/{uid}/" in key]

    uid = runs.finetune("deleted")["metadata"]["uid"]
    others = set(runs.keys_of("cancelled"))
    assert own()
    runs.kubectl("delete", "finetune", "deleted", "-n", NAMESPACE, "--timeout=180s")
    assert own() == []
    assert others
    assert others <= set(runs.keys_of("cancelled"))
    selector = "finetune-operator.io/name=deleted,!finetune-operator.io/cleanup-of"

    def gone() -> bool:
        return not runs.kubectl.get("jobs,pods,configmaps", "-n", NAMESPACE, "-l", selector)["items"]

    runs.eventually(gone, 60)
