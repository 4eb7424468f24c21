"""Many Finetunes on a real API server without nodes: who makes them, who plays their pods, what the operator did.

The player stands for kubelet and scheduler: it writes what they would write of a pod. kwok could not: what a pod comes
to is in its termination message, which differs from stage to stage.
"""

import asyncio
import os
import re
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune_api import names
from finetune_api.names import Stage
from finetune_operator.api_server import APPLY_PATCH, MERGE_PATCH, ApiServer, connect
from finetune_operator.mirror import OURS

from tests.builders import a_body, a_result
from tests.cluster.light import LightCluster, free_port, light_api_server
from tests.operator.operator_process import ROOT, Kubectl, running_operator

NAMESPACE = "bench"
FINETUNES = f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/{names.PLURAL}"
JOBS, PODS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", f"/api/v1/namespaces/{NAMESPACE}/pods"
AT_ONCE = 8
"""Requests in flight of each loop that writes, as many as the operator has workers."""

LONG = 3600.0


@contextmanager
def fresh_cluster() -> Iterator[LightCluster]:
    """An API server with nothing in it but our definition and a namespace."""
    with TemporaryDirectory() as folder, light_api_server(Path(folder) / "cluster") as light:
        kubectl = Kubectl(light.binary("kubectl"), light.kubeconfig)
        kubectl("apply", "-f", str(ROOT / "crds" / "finetunes.yaml"))
        kubectl("wait", "--for=condition=Established", "crd/finetunes.finetune-operator.io", "--timeout=30s")
        kubectl("create", "namespace", NAMESPACE)
        yield light


@dataclass(frozen=True)
class Process:
    """An operator at work, seen from outside."""

    pid: int
    port: int

    def metrics(self) -> Counter[str]:
        """Its counters and gauges, by name and labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return Counter({name: float(value) for name, _, value in pairs})

    def requests(self) -> Counter[str]:
        """Requests to the API server so far, by verb, without those of kopf, which lists and watches Finetunes."""
        found: Counter[str] = Counter()
        for name, value in self.metrics().items():
            if verb := re.match(r'finetune_api_requests_total\{code="[^"]*",verb="(\w+)"\}', name):
                found[verb[1]] += round(value)
        return found

    @property
    def is_ready(self) -> bool:
        """Whether it holds its Lease and works."""
        with suppress(OSError):
            return self.metrics()["finetune_leader"] == 1
        return False

    @property
    def cpu_seconds(self) -> float:
        """Processor time used so far. Source: proc(5), /proc/pid/stat."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def peak_bytes(self) -> int:
        """The most memory it has had at any time. Source: proc(5), VmHWM."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024

    @property
    def resident_bytes(self) -> int:
        """Memory it has now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def descriptors(self) -> int:
        """Open files and connections."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@contextmanager
def operator(light: LightCluster, **settings: Any) -> Iterator[Process]:
    """An operator of that cluster; it need not be ready yet."""
    port = free_port()
    with TemporaryDirectory() as folder, running_operator(light.kubeconfig, Path(folder), port, **settings) as process:
        yield Process(process.pid, port)


async def ready(process: Process) -> None:
    """Return once the operator works. Raises TimeoutError where it does not within a minute."""
    async with asyncio.timeout(60):
        while not process.is_ready:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def connected(light: LightCluster) -> AsyncIterator[ApiServer]:
    """A client."""
    api = await connect(str(light.kubeconfig))
    try:
        yield api
    finally:
        await api.close()


async def in_parallel(work: Callable[[int], Awaitable[object]], numbers: Iterable[int], at_once: int = AT_ONCE) -> None:
    """`work(number)` for each number, so many at once."""
    left = iter(numbers)

    async def worker() -> None:
        for number in left:
            await work(number)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(worker())


def named(number: int) -> str:
    """Name of a Finetune."""
    return f"run-{number}"


async def create(api: ApiServer, name: str, **spec: Any) -> dict[str, Any]:
    """A Finetune; returned as it was admitted."""
    return await api.request("POST", FINETUNES, body=a_body(name, NAMESPACE, **spec))


async def listed(api: ApiServer, path: str, label_selector: str = "") -> tuple[list[dict[str, Any]], str]:
    """All objects, and the version of the list."""
    bodies, version = list[dict[str, Any]](), ""
    async for page, listed_at in api.pages(path, label_selector):
        bodies, version = bodies + page, listed_at
    return bodies, version


async def apply_status(api: ApiServer, name: str, status: dict[str, Any]) -> None:
    """Write a whole status, as the operator does."""
    body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "status": status}
    query = [("fieldManager", names.FIELD_MANAGER), ("force", "true")]
    await api.request("PATCH", f"{FINETUNES}/{name}/status", query, body, content_type=APPLY_PATCH)


@dataclass
class Player:
    """Writes of each pod what kubelet and scheduler would: it runs at once, and ends well unless it is to go on."""

    api: ApiServer
    goes_on: frozenset[Stage] = frozenset()
    """Stages whose pods do not end."""
    running: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Train pods by the name of their Finetune, as they were made."""

    async def play(self) -> None:
        """For ever, pod by pod."""
        pods, version = await listed(self.api, PODS, OURS)
        waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for pod in pods:
            waiting.put_nowait(pod)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(self._work(waiting))
            async for change in self.api.watch(PODS, OURS, version, LONG):
                if change["type"] == "ADDED":
                    waiting.put_nowait(change["object"])

    async def _work(self, waiting: "asyncio.Queue[dict[str, Any]]") -> None:
        while True:
            pod = await waiting.get()
            stage = Stage(pod["metadata"]["labels"][names.LABEL_STAGE])
            await self._write(pod, "Running", {"running": {"startedAt": _now()}})
            if stage is Stage.TRAIN:
                self.running[pod["metadata"]["labels"][names.LABEL_NAME]] = pod
            if stage not in self.goes_on:
                end = {"exitCode": 0, "reason": "Completed", "startedAt": _now(), "finishedAt": _now()}
                await self._write(pod, "Succeeded", {"terminated": end | {"message": a_result(stage).to_message()}})

    async def _write(self, pod: dict[str, Any], phase: str, state: dict[str, Any]) -> None:
        container = {"name": names.TRAINER_CONTAINER, "image": "t", "imageID": "", "ready": True, "restartCount": 0}
        body = {"status": {"phase": phase, "containerStatuses": [container | {"state": state}]}}
        path = f"{PODS}/{pod['metadata']['name']}/status"
        with suppress(Exception):  # Its Finetune may be deleted while it is played.
            await self.api.request("PATCH", path, body=body, content_type=MERGE_PATCH)


@asynccontextmanager
async def in_background(work: Awaitable[None]) -> AsyncIterator[None]:
    """Beside what is inside; ended with it."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass
class Sightings:
    """When each Finetune's first Job was seen, by name, in seconds of the monotonic clock."""

    at: dict[str, float] = field(default_factory=dict)

    async def watch(self, api: ApiServer) -> None:
        """For ever."""
        _, version = await listed(api, JOBS, OURS)
        async for change in api.watch(JOBS, OURS, version, LONG):
            self.at.setdefault(change["object"]["metadata"]["labels"][names.LABEL_NAME], time.monotonic())

    async def of(self, wanted: Iterable[str]) -> None:
        """Return once all of these were seen."""
        left = set(wanted)
        while left := left - self.at.keys():
            await asyncio.sleep(0.02)


async def until(is_so: Callable[[], Awaitable[bool]], seconds: float = 600) -> float:
    """Seconds until it is so, asked every 0.2 s. Raises TimeoutError."""
    began = time.monotonic()
    while not await is_so():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"it did not happen within {seconds:.0f} s")
        await asyncio.sleep(0.2)
    return time.monotonic() - began


async def phases(api: ApiServer) -> Counter[str]:
    """How many Finetunes are in each phase."""
    bodies, _ = await listed(api, FINETUNES)
    return Counter(body.get("status", {}).get("phase", "") for body in bodies)


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
