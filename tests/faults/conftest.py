"""The world in which scenes are played."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from tests.cluster.light import LightCluster
from tests.faults.api import Api
from tests.faults.kubelet import FINETUNES, Kubelet
from tests.faults.nursery import nursery
from tests.faults.proxy import running_proxy
from tests.faults.scene import World
from tests.operator.operator_process import ROOT

T = TypeVar("T")
Play = Callable[[Callable[[World], Coroutine[Any, Any, T]]], T]


@pytest.fixture(scope="module")
def play(light_cluster: LightCluster, tmp_path_factory: pytest.TempPathFactory) -> Play[Any]:
    """Runs a coroutine function with a world of its own."""
    folder = tmp_path_factory.mktemp("faults")

    def run(story: Callable[[World], Coroutine[Any, Any, T]]) -> T:
        async def told() -> T:
            async with a_world(light_cluster, folder) as world:
                return await story(world)

        return asyncio.run(told())

    return run


@asynccontextmanager
async def a_world(light: LightCluster, folder: Path) -> AsyncIterator[World]:
    """API server, proxy, kubelet and nursery."""
    kubeconfig = folder / "kubeconfig"
    async with Api(light) as api, running_proxy(api, kubeconfig) as proxy:
        await _define_finetunes(api)
        kubelet = Kubelet(api)
        playing = asyncio.create_task(kubelet.run())
        try:
            with nursery(kubeconfig, folder) as operators:
                yield World(api, proxy, kubelet, operators)
        finally:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)


async def _define_finetunes(api: Api) -> None:
    crd = yaml.safe_load((ROOT / "crds" / "finetunes.yaml").read_text())
    await api.make("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)

    async with asyncio.timeout(30):
        while (await api.ask("GET", FINETUNES))[0] != 200:
            await asyncio.sleep(0.1)
