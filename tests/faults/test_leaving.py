"""An operator that is told to leave does so in time, even where the API server answers nothing any more."""

import asyncio
import signal

import pytest
from finetune_api import names

from tests.builders import a_body
from tests.faults.conftest import Play
from tests.faults.plans import Mute
from tests.faults.scene import World, ended, until

pytestmark = pytest.mark.api_server

GRACE_SECONDS = 25
"""Within the 30 seconds that its pod is given."""


async def _told_to_leave_while_nobody_answers(world: World) -> float:
    namespace, plan = "scene-mute", Mute()
    await world.api.make("/api/v1/namespaces", {"metadata": {"name": namespace}})
    world.proxy.plans[namespace] = plan
    lease = {"leaseNamespace": namespace, "leaseName": "operator"}
    operator = world.nursery.start("mute", namespaces=[namespace], **lease)
    await until(lambda: plan.is_watched)
    plan.is_mute = True
    finetunes = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"
    await world.api.make(finetunes, a_body("story", namespace))  # A pass begins, and hangs.
    loop = asyncio.get_running_loop()
    began = loop.time()
    operator.send(signal.SIGTERM)
    async with asyncio.timeout(2 * GRACE_SECONDS):
        await ended(operator)
    return loop.time() - began


def test_an_operator_leaves_in_time_although_the_api_server_answers_nothing(play: Play[float]) -> None:
    assert play(_told_to_leave_while_nobody_answers) < GRACE_SECONDS
