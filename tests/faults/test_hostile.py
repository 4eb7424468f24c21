"""A hundred hostile Finetunes: each is refused by the API server, or Failed at once with one clean line.

Nothing of theirs runs, nothing of theirs reaches a terminal raw, and who comes after them waits no longer.
"""

import asyncio
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from finetune_api import names

from tests.builders import a_body
from tests.faults.conftest import Play
from tests.faults.scene import World, until

pytestmark = pytest.mark.api_server

HOSTILE, BYSTANDERS = "hostile", ("bystander-alone", "bystander-among")
BAR_SECONDS = 10
"""How long an admitted one may take to fail."""

INNER = ["169.254.169.254", "169.254.169.254.", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518"]
ESCAPES = ["\x1b[31mred", "bell\x07", "two\nlines", "back\x08space", "\u202eesrever", "nul\x00"]
TOO_LARGE = [10**9, 2**31, 2**63, 10**30, 1e308]

MUTATIONS: list[tuple[str, list[Any]]] = [
    (
        "datasets.0.uri",
        ["file:///etc/passwd", "/etc/passwd", "http://data.example/x", "gopher://x/y", "", " ", "s3://", "s3://B/key",
         "s3://b/a/../../other/key", "s3://b/..", "pvc://claim/../../etc/shadow", "hf://a/b/../../c",
         "configmap://../kube-system/x", "configmap://name/../key", "configmap://kube-system/name/key",
         "https://user:password@data.example/x", "https://[fe80::1]/x", f"s3://b/{'x' * 2000}",
         *(f"https://{host}/latest/meta-data" for host in INNER), *(f"s3://b/{text}" for text in ESCAPES)],
    ),
    ("model.uri", ["file:///etc/passwd", "hf://../../x/y", "hf://a/b;rm -rf", "s3://b/../x", "http://169.254.169.254/"]),
    ("model", [{}, {"uri": "hf://a/b", "finetuneRef": {"name": "x"}}, {"uri": "hf://a/b", "trustRemoteCode": True},
               {"finetuneRef": {"name": "../../other/finetunes/x"}}, {"finetuneRef": {"name": "\x1b[2J"}}]),
    ("output.uri", ["file:///tmp", "s3://../x", "s3://out/../others", "s3://out/\x1b[31m", "s3://others/models",
                    "s3://out-of-bounds", "S3://out/x"]),
    ("storage.endpoint", [*(f"http://{host}" for host in INNER), "http://[fe80::1]:9000", "ftp://x",
                          "http://[::ffff:169.254.169.254]", "http://a b", "http://x" + "y" * 600]),
    ("storage.serviceAccountName", ["../default", "kube-system:default", "\x1b[31m"]),
    ("storage.credentialsSecretRef.name", ["", "kube-system/token", "../token", "\x1b[31m"]),
    ("tracking", [{"sinks": ["mlflow"], "mlflow": {"trackingUri": "http://169.254.169.254"}}, {"sinks": ["evil"]},
                  {"sinks": ["wandb"], "wandb": {"baseUrl": "http://100.100.100.200"}}]),
    ("hyperparameters.epochs", [0, -1, 1e308, "1", True]),
    ("hyperparameters.trainBatchSize", TOO_LARGE),
    ("hyperparameters.learningRate", [0, -1, 1e308, "1e-4"]),
    ("method.lora.rank", [0, -1, 10**9]),
    ("trainer.gpusPerNode", [-1, 10**9]),
    ("trainer.memory", ["-1Gi", "1e99", "lots", "\x1b[31m"]),
    ("trainer.podLabels", [{"finetune-operator.io/name": "other"}, {"": "x"}]),
    ("queue.name", ["\x1b[31m", "a/b"]),
    ("datasets", [[], {}, "s3://x/y", [{"name": "a", "uri": "s3://b/c"}] * 2, [{"name": "A B", "uri": "s3://b/c"}],
                  [{"name": f"d{number}", "uri": "s3://b/c"} for number in range(17)]]),
    ("split.trainPercentage", [0, -1, 101]),
    ("description", ["x" * 2**20]),
    ("promptTemplate", ["<<x>>" * 2**18]),
]  # fmt: skip


def bodies() -> Iterator[dict[str, Any]]:
    """Every hostile Finetune, named by its place in the list."""
    values = [(path, value) for path, found in MUTATIONS for value in found]
    for number, (path, value) in enumerate(values):
        body = copy.deepcopy(a_body(f"h{number}", HOSTILE))
        target: Any = body["spec"]
        *parents, last = path.split(".")
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        target[last] = value
        yield body
    for name in ("x" * 41, "ümlaut", "..", "a/b", "UPPER", "1st", "x\x1b[31m"):
        yield a_body(name, HOSTILE)
    shapes: tuple[Any, ...] = (None, "spec", [], 7)
    for spec in shapes:
        yield a_body("shape", HOSTILE) | {"spec": spec}


@dataclass
class Story:
    """What became of them."""

    refused: dict[str, str] = field(default_factory=dict)
    """Words of the API server, by the body."""
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Status, by the body."""
    slow: list[str] = field(default_factory=list)
    """Those that were neither in time."""
    jobs: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    log: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each bystander took."""


@pytest.fixture(scope="module")
def story(play: Play[Story]) -> Story:
    return play(_attack)


async def _attack(world: World) -> Story:
    story = Story()
    for namespace in (HOSTILE, *BYSTANDERS):
        await world.api.make("/api/v1/namespaces", {"metadata": {"name": namespace}})
        account = {"metadata": {"name": "default"}}
        await world.api.make(f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
    lease = {"leaseNamespace": HOSTILE, "leaseName": "operator"}
    world.nursery.start("hostile", namespaces=[HOSTILE, *BYSTANDERS], allowedOutputPrefixes=["s3://out"], **lease)
    for namespace in BYSTANDERS:
        world.kubelet.scripts[namespace] = {}
    await _bystand(world, BYSTANDERS[0], story)  # Once more: the first one has waited for the operator's start.
    await world.api.ask("DELETE", f"{_path(BYSTANDERS[0])}/story")
    await until(lambda: world.kubelet.finetune(BYSTANDERS[0]) is None)
    await _bystand(world, BYSTANDERS[0], story)
    among = asyncio.create_task(_bystand(world, BYSTANDERS[1], story))
    await asyncio.gather(*(_throw(world, body, story) for body in bodies()))
    await among
    story.jobs = [job["metadata"]["name"] for job in await world.api.list(f"/apis/batch/v1/namespaces/{HOSTILE}/jobs")]
    events = await world.api.list(f"/api/v1/namespaces/{HOSTILE}/events")
    story.events = [f"{event['reason']} {event['message']}" for event in events]
    story.log = (world.nursery.folder / "hostile.log").read_text()
    return story


def _path(namespace: str) -> str:
    return f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"


async def _throw(world: World, body: dict[str, Any], story: Story) -> None:
    """Create one, and see it fail."""
    told = json.dumps(body)[:400]
    status, answer = await world.api.ask("POST", _path(HOSTILE), body)
    if status != 201:
        assert status in (400, 413, 422), answer
        story.refused[told] = answer["message"]
        return
    uid = answer["metadata"]["uid"]

    def seen() -> dict[str, Any]:
        return dict(world.kubelet.finetunes.get(uid, {}).get("status", {}))

    try:
        await until(lambda: seen().get("phase") == "Failed", BAR_SECONDS)
        story.failed[told] = seen()
    except TimeoutError:
        story.slow.append(f"{told} {seen()}")


async def _bystand(world: World, namespace: str, story: Story) -> None:
    """One that is well, from its creation until it has succeeded."""
    began = time.monotonic()
    await world.api.make(_path(namespace), a_body("story", namespace))
    await until(lambda: (world.kubelet.finetune(namespace) or {}).get("status", {}).get("phase") == "Succeeded")
    story.seconds[namespace] = time.monotonic() - began


def test_each_is_refused_or_fails_at_once(story: Story) -> None:
    assert len(story.refused) + len(story.failed) >= 100
    assert story.slow == []


def test_a_refusal_at_admission_names_the_place(story: Story) -> None:
    placeless = [told for told, words in story.refused.items() if "spec" not in words and "metadata" not in words]
    assert placeless == []


def test_those_that_fail_say_why_on_one_clean_line(story: Story) -> None:
    assert {status["failure"]["class"] for status in story.failed.values()} == {"InvalidConfig"}
    reasons = {status["failure"]["reason"] for status in story.failed.values()}
    assert reasons == {"AddressForbidden", "OutputForbidden", "RemoteCodeForbidden"}
    for status in story.failed.values():
        assert status["failure"]["message"].isprintable()
        assert all(condition["message"].isprintable() for condition in status["conditions"])


def test_nothing_of_theirs_is_run_or_repeated_raw(story: Story) -> None:
    assert story.jobs == []
    assert story.events
    assert all(text.isprintable() for text in story.events)
    assert all(line.isprintable() for line in story.log.splitlines())
    assert "bug in the operator" not in story.log


def test_who_comes_among_them_waits_no_longer(story: Story) -> None:
    alone, among = (story.seconds[name] for name in BYSTANDERS)
    assert among < alone + BAR_SECONDS
