"""A real API server with our CRD on it, spoken to in plain JSON."""

import json
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from finetune_api import names
from finetune_api.crd import custom_resource_definition

from tests.cluster.api import Api
from tests.cluster.light import LightCluster

Body = dict[str, Any]

NAMESPACE = "team-a"
ESTABLISHED_SECONDS = 30
APPLY = "?fieldValidation=Strict&fieldManager=test&force=true"


class Refusal(Exception):
    """The API server's own words on why it will not have an object."""


class ApiServer(NamedTuple):
    """The few requests that these tests make. Unknown fields are errors, as they are for kubectl."""

    api: Api
    group: str = names.GROUP

    def create(self, body: Body, *, store: bool = False) -> Body:
        """The object as admitted; stored only if asked. Raises Refusal."""
        query = "" if store else "&dryRun=All"
        return self._send("POST", f"{self._path(body)}?fieldValidation=Strict{query}", body | {"apiVersion": self._api})

    def change(self, body: Body, spec: Body) -> Body:
        """The stored object with these fields of `spec` replaced. Raises Refusal."""
        path = f"{self._path(body)}/{body['metadata']['name']}?fieldValidation=Strict"
        return self._send("PATCH", path, {"spec": spec}, "application/merge-patch+json")

    def write_status(self, body: Body, status: Body) -> Body:
        """The stored object with this status, as the operator writes it. Raises Refusal."""
        path = f"{self._path(body)}/{body['metadata']['name']}/status{APPLY}"
        whole = {"apiVersion": self._api, "kind": names.KIND, "metadata": {"name": body["metadata"]["name"]}}
        return self._send("PATCH", path, whole | {"status": status}, "application/apply-patch+yaml")

    def delete(self, body: Body) -> None:
        """Remove a stored object."""
        self._send("DELETE", f"{self._path(body)}/{body['metadata']['name']}", None)

    def install(self, crd: Body) -> None:
        """Create or replace a CRD and wait until its objects can be listed. Raises Refusal."""
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        self._send("PATCH", f"{crds}/{crd['metadata']['name']}{APPLY}", crd, "application/apply-patch+yaml")
        wait_until(lambda: self.api.find(f"/apis/{self._api}/{names.PLURAL}") is not None)

    @property
    def _api(self) -> str:
        return f"{self.group}/{names.VERSION}"

    def _path(self, body: Body) -> str:
        return f"/apis/{self._api}/namespaces/{body['metadata']['namespace']}/{names.PLURAL}"

    def _send(self, method: str, path: str, body: Body | None, content_type: str = "application/json") -> Body:
        try:
            answer = self.api.request(path, method=method, body=body, content_type=content_type)
        except urllib.error.HTTPError as error:
            with error:
                raise Refusal(json.loads(error.read())["message"]) from None
        return dict(json.loads(answer))


def wait_until(is_so: Callable[[], bool]) -> None:
    """The API server takes up a CRD a moment after it was written."""
    end = time.monotonic() + ESTABLISHED_SECONDS
    while not is_so():
        assert time.monotonic() < end, f"the API server did not take up the CRD in {ESTABLISHED_SECONDS} s"
        time.sleep(0.02)


def administrator(light: LightCluster) -> Api:
    """The API of a light cluster, with the certificates that its kubeconfig names."""
    user = yaml.safe_load(light.kubeconfig.read_text())["users"][0]["user"]
    return Api(light.server, Path(user["client-certificate"]).parent)


@pytest.fixture(scope="session")
def server(light_cluster: LightCluster) -> ApiServer:
    """The API server with the CRD and a namespace."""
    server = ApiServer(administrator(light_cluster))
    server.install(custom_resource_definition())
    if server.api.find(f"/api/v1/namespaces/{NAMESPACE}") is None:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        server.api.request("/api/v1/namespaces", method="POST", body=namespace, content_type="application/json")
    return server
