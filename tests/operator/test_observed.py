"""What a pass makes of children that somebody has touched."""

from typing import Any

from finetune_api.names import Stage
from finetune_operator.observed import observed_children

from tests.builders import UID


def a_job(name: str, **metadata: Any) -> dict[str, Any]:
    owners = [{"uid": UID, "controller": True}]
    return {"metadata": {"name": name, "uid": f"{name}-uid", "ownerReferences": owners} | metadata}


def test_a_job_whose_labels_were_edited_is_still_the_attempt_that_it_was() -> None:
    (job,), _ = observed_children([a_job("story-9f3c2a10-train-12", labels={"stage": "?"})], [], UID)
    assert (job.stage, job.attempt) == (Stage.TRAIN, 12)


def test_somebody_elses_job_in_our_finetunes_name_is_no_attempt() -> None:
    jobs, _ = observed_children([a_job("notebook"), a_job("story-train-0"), a_job("story-train-1-copy")], [], UID)
    assert jobs == ()
