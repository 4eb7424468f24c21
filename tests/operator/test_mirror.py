"""The mirror of Finetunes and children: what a watch tells, what it misses, and what a listing mends."""

from typing import Any

import pytest
from finetune_api import names
from finetune_api.resource import parse_finetune
from finetune_operator.cluster import Key
from finetune_operator.mirror import Children, Mirror
from finetune_operator.observed import JobState

from tests.builders import a_body

KEY = Key("team-a", "run")


def a_child(uid: str, version: int, run: str = "run-uid", **status: Any) -> dict[str, Any]:
    """A Job as the API server returns it, with a pod template that nobody looks at."""
    labels = {names.MANAGED_BY_LABEL: names.FIELD_MANAGER, names.LABEL_NAME: "run", names.LABEL_UID: run}
    owner = {"kind": names.KIND, "name": "run", "uid": run, "controller": True}
    meta = {"name": f"run-{uid}-train-1", "namespace": "team-a", "uid": uid, "resourceVersion": str(version)}
    return {
        "metadata": meta | {"labels": labels, "ownerReferences": [owner], "managedFields": [{}]},
        "spec": {"parallelism": 2, "template": {"spec": {}}},
        "status": status,
    }


def versions(children: Children, run: str = "run-uid") -> list[str]:
    return [body["metadata"]["resourceVersion"] for body in children.of(run)]


@pytest.fixture
def told() -> list[Key]:
    """Whose child has changed, each time."""
    return []


@pytest.fixture
def children(told: list[Key]) -> Children:
    return Children("/apis/batch/v1/jobs", told.append)


def test_each_change_is_told_once_whatever_comes_twice_or_late(children: Children, told: list[Key]) -> None:
    for kind, version in [("ADDED", 5), ("ADDED", 5), ("MODIFIED", 7), ("MODIFIED", 6)]:
        children.apply({"type": kind, "object": a_child("a", version)})
    assert (versions(children), told) == (["7"], [KEY, KEY])
    for _ in range(2):
        children.apply({"type": "DELETED", "object": a_child("a", 8)})
    assert (versions(children), told) == ([], [KEY] * 3)


def test_a_listing_mends_what_the_watch_has_missed(children: Children, told: list[Key]) -> None:
    children.replace([a_child("gone", 1), a_child("same", 2), a_child("other", 3)])
    told.clear()
    children.replace([a_child("same", 2), a_child("other", 9), a_child("new", 8)])
    assert sorted(versions(children)) == ["2", "8", "9"]
    assert told == [KEY] * 3, "of one that is gone, one that is other and one that is new"


def test_a_child_whose_label_was_edited_is_found_under_the_new_one_alone(children: Children) -> None:
    children.apply({"type": "ADDED", "object": a_child("a", 1)})
    children.apply({"type": "MODIFIED", "object": a_child("a", 2, run="another")})
    assert (versions(children), versions(children, "another")) == ([], ["2"])


def test_only_what_a_pass_looks_at_is_kept(children: Children) -> None:
    children.apply({"type": "ADDED", "object": a_child("a", 1)})
    [kept] = children.of("run-uid")
    assert "template" not in kept["spec"]
    assert "managedFields" not in kept["metadata"]


def test_nobody_relies_on_children_before_all_have_been_listed() -> None:
    mirror = Mirror([], lambda key: None)
    body = a_body("run", "team-a")
    body["metadata"] |= {"uid": "run-uid", "resourceVersion": "5"}
    finetune = parse_finetune(body)
    assert mirror.children(finetune) is None
    mirror._jobs[0].replace([a_child("a", 1), a_child("b", 1, run="another")])
    assert mirror.children(finetune) is None
    mirror._pods[0].replace([])
    seen = mirror.children(finetune)
    assert seen is not None
    assert [(job.uid, job.state, job.size) for job in seen.jobs] == [("a", JobState.RUNNING, 2)]


def test_a_finetune_is_as_the_watch_told_last_unless_it_is_old() -> None:
    mirror, body = Mirror([], lambda key: None), a_body("run", "team-a")
    body["metadata"] |= {"uid": "run-uid", "resourceVersion": "5"}
    mirror.note(KEY, body)
    known = mirror.finetune(KEY)
    assert known is not None
    assert known.spec == parse_finetune(body).spec
    mirror.keep({KEY: "5"})
    assert mirror.finetune(KEY) is not None
    mirror.keep({KEY: "6"})
    assert mirror.finetune(KEY) is None
    for version in ("6", "5"):
        mirror.note(KEY, body | {"metadata": body["metadata"] | {"resourceVersion": version}})
    known = mirror.finetune(KEY)
    assert known is not None
    assert known.metadata.resource_version == "6", "an event that comes late is not news"
    mirror.note(KEY, body | {"metadata": body["metadata"] | {"uid": "another", "resourceVersion": "5"}})
    made_anew = mirror.finetune(KEY)
    assert made_anew is not None
    assert made_anew.metadata.uid == "another"


@pytest.mark.parametrize(("namespaces", "known"), [([], 1), (["team-a"], 1), (["team-b"], 0)])
def test_a_job_that_was_made_just_now_is_known_before_its_watch_tells(namespaces: list[str], known: int) -> None:
    mirror = Mirror(namespaces, lambda key: None)
    mirror.made(a_child("a", 1) | {"kind": "Job"})
    mirror.made(a_child("b", 1) | {"kind": "ConfigMap"})
    assert len(list(mirror._jobs[0].of("run-uid"))) == known
