"""What is made of the answers of the API server, odd ones above all."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from finetune_api import names
from finetune_api.names import Stage
from finetune_operator.api_server import ApiServer, ClusterUnreachable, Invalid, Refused
from finetune_operator.cluster import Cluster, Key
from finetune_operator.lease import Lease
from finetune_operator.manifests import attempt_manifests
from finetune_operator.metrics import REQUESTS
from finetune_operator.nodes import Nodes
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from tests.builders import UID, a_finetune, some_settings


@asynccontextmanager
async def an_api_server(*answers: web.StreamResponse) -> AsyncIterator[ApiServer]:
    """One that gives these answers, one after the other."""
    left = list(answers)

    async def answer(_: web.Request) -> web.StreamResponse:
        return left.pop(0)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(application) as server:
        api = ApiServer(ApiClient(Configuration(host=str(server.make_url("")).rstrip("/"))))
        yield api
        await api.close()


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7), ("86400", 60), ("", 0), ("Wed, 25 Nov 2026 12:00:00 GMT", 0)]
)
async def test_an_api_server_that_asks_to_be_left_alone_is(header: str, seconds: float) -> None:
    before = REQUESTS.labels("GET", 429)._value.get()
    async with an_api_server(web.json_response({}, status=429, headers={"Retry-After": header})) as api:
        with pytest.raises(ClusterUnreachable) as error:
            await Cluster(api).list_versions([])
    assert error.value.retry_after_seconds == seconds
    assert REQUESTS.labels("GET", 429)._value.get() == before + 1


async def test_while_it_does_only_its_lease_is_asked_for() -> None:
    busy = web.json_response({}, status=429, headers={"Retry-After": "9"})
    async with an_api_server(busy, web.json_response({"kind": "Lease"})) as api:
        for _ in range(2):
            with pytest.raises(ClusterUnreachable) as error:
                await Cluster(api).list_versions([])
            assert 8 < error.value.retry_after_seconds <= 9
        assert await Lease(api, "default", "the-one").get() == {"kind": "Lease"}


async def test_a_request_that_fails_is_made_again_and_not_for_ever() -> None:
    failing, well = (
        (web.json_response({}, status=500) for _ in range(4)),
        web.json_response({"metadata": {"resourceVersion": "1"}, "items": []}),
    )
    async with an_api_server(next(failing), next(failing), well) as api:
        assert await Cluster(api).list_versions([]) == {}
    async with an_api_server(next(failing), next(failing), web.json_response({"message": "no"}, status=503)) as api:
        with pytest.raises(ClusterUnreachable, match="503 no"):
            await Cluster(api).list_versions([])


async def test_a_name_leads_to_no_other_path_and_a_refusal_to_one_line() -> None:
    refusal = web.json_response({"message": "no \x1b[31mred\nlines"}, status=403)
    async with an_api_server(refusal) as api:
        with pytest.raises(Refused) as error:
            await Cluster(api).get_finetune(Key("team-a", "../../team-b/finetunes/theirs"))
    path = "/apis/finetune-operator.io/v1alpha1/namespaces/team-a/finetunes/..%2F..%2Fteam-b%2Ffinetunes%2Ftheirs"
    assert str(error.value) == f"GET {path}: 403 no [31mred lines"


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (403, "exceeded quota", Refused),
        (400, 'admission webhook "images.example" denied the request: not signed', Refused),
        (422, "ValidatingAdmissionPolicy 'images' with binding 'all' denied request: not signed", Refused),
        (422, "spec.template.spec.nodeSelector: Invalid value", Invalid),
    ],
)
async def test_what_is_refused_is_not_asked_for_again_at_once(status: int, said: str, kind: type[Refused]) -> None:
    manifest = attempt_manifests(a_finetune(), Stage.PREPARE, 1, some_settings())[-1]
    refusals = [web.json_response({"message": f"{said}, request {number}"}, status=status) for number in range(2)]
    async with an_api_server(*refusals) as api:
        cluster = Cluster(api)
        for _ in range(2):
            with pytest.raises(Refused, match=r"request 0$") as error:
                await cluster.create(manifest)
            assert error.type is kind
        with pytest.raises(Refused, match=r"request 1$"):
            await cluster.create(manifest | {"kind": "ConfigMap"})


async def test_a_watch_tells_of_each_change_and_ends_when_the_api_server_ends_it() -> None:
    events = web.Response(body=b'{"type":"ADDED"}\n{"type":"MODIFIED"}\n')
    async with an_api_server(events) as api:
        assert len([None async for _ in Lease(api, "default", "the-one").changes()]) == 2


async def test_a_watch_that_is_refused_says_so() -> None:
    async with an_api_server(web.json_response({"message": "too old"}, status=500)) as api:
        with pytest.raises(ClusterUnreachable, match="too old"):
            _ = [None async for _ in Lease(api, "default", "the-one").changes()]


async def test_labels_of_nodes_are_asked_for_once() -> None:
    listed = {"items": [{"metadata": {"labels": {"pool": "h100"}}}, {"metadata": {}}]}
    async with an_api_server(web.json_response(listed), web.json_response(listed["items"][0])) as api:
        nodes = Nodes(api)
        for _ in range(2):
            assert await nodes.labels_with({"zone": "far"}) == ({"pool": "h100"}, {})
            assert await nodes.labels_of("h100-a") == {"pool": "h100"}


async def test_nodes_that_may_not_be_read_or_are_not_there_have_no_labels() -> None:
    forbidden = [web.json_response({"message": "forbidden"}, status=403) for _ in range(2)]
    async with an_api_server(*forbidden, web.json_response({"items": None})) as api:
        nodes = Nodes(api)
        assert await nodes.labels_with({"zone": "far"}) == ()
        assert await nodes.labels_of("h100-a") is None
        assert await nodes.labels_with({"zone": "near"}) == ()


@pytest.mark.parametrize("status", [200, 404])
async def test_a_page_of_whoever_stands_in_front_of_the_api_server_is_no_answer(status: int) -> None:
    pages = [web.Response(text="the proxy is well", status=status) for _ in range(3)]
    async with an_api_server(*pages) as api:
        with pytest.raises(ClusterUnreachable, match="the proxy is well"):
            await Cluster(api).get_finetune(Key("team-a", "run"))


async def test_a_job_that_is_made_between_two_lists_keeps_its_pods() -> None:
    """Whoever took it for gone would tell the pods of a new attempt to leave."""
    owners = [{"uid": UID, "controller": True}]
    job = {"metadata": {"name": "story-9f3c2a10-train-1", "uid": "job-uid", "ownerReferences": owners}}
    of_job = {
        "annotations": {names.NODE_RANK_ANNOTATION: "0"},
        "ownerReferences": [{"uid": "job-uid", "controller": True}],
    }
    pods = {"items": [{"metadata": {"name": "pod", "uid": "pod-uid"} | of_job, "status": {"phase": "Pending"}}]}
    lists = [{"items": []}, pods, {"items": [job]}, pods]
    async with an_api_server(*map(web.json_response, lists)) as api:
        observed = await Cluster(api).list_children(a_finetune())
    assert observed.strays == ()
    assert [pod.name for pod in observed.jobs[0].pods] == ["pod"]
