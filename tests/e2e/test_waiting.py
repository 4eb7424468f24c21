"""Runs whose pods cannot start, in the words of the real scheduler: they wait, and are held when their time is up."""

import pytest

from tests.e2e.installed import Product

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("name", "stage", "words"),
    [
        ("no-volume", "prepare", 'persistentvolumeclaim "absent" not found'),
        ("no-gpu", "train", "Insufficient example.com/gpu"),
    ],
)
def test_a_pod_without_a_place_is_told_in_the_schedulers_words(
    runs: Product, name: str, stage: str, words: str
) -> None:
    def message() -> str:
        stages = {entry["name"]: entry for entry in runs.finetune(name)["status"].get("stages", [])}
        return str(stages.get(stage, {}).get("message"))

    runs.eventually(lambda: words in message(), 300, lambda: runs.story(name))
    runs.change(name, pendingDeadlineSeconds=1)
    status = runs.ended(name, 60)
    assert (status["phase"], status["failure"]["reason"]) == ("Suspended", "PendingDeadlineExceeded")
    assert words in status["failure"]["message"]
    assert "spec.pendingDeadlineSeconds is 1" in status["failure"]["message"]
