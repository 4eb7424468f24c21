"""A few plain requests to the API server while a cluster starts: kubectl needs 0.2 s for each, this a millisecond."""

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


class Api:
    """The API server as its administrator. Limit: JSON, no watches; the operator's tests use a real client."""

    def __init__(self, server: str, pki: Path) -> None:
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self._server = server
        # An empty ProxyHandler: a proxy of the environment must not see requests to this machine.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def request(self, path: str, *, method: str = "GET", body: Any = None, content_type: str = "") -> bytes:
        """One request. Raises urllib.error.HTTPError for an answer of 400 and up, OSError for none."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if content_type else {}
        request = urllib.request.Request(f"{self._server}{path}", data=data, headers=headers, method=method)
        with self._opener.open(request, timeout=5) as answer:
            content: bytes = answer.read()
        return content

    def find(self, path: str) -> Any:
        """The object at the path, None when it is not there or the server does not answer yet."""
        try:
            return json.loads(self.request(path))
        except (OSError, urllib.error.HTTPError, json.JSONDecodeError):
            return None

    def ready(self) -> bool:
        """Whether the API server says so."""
        try:
            return self.request("/readyz") == b"ok"
        except (OSError, urllib.error.HTTPError):
            return False

    def has_default_account(self) -> bool:
        """Whether pods can be made in the namespace `default`: the controllers have written its ServiceAccount."""
        return self.find("/api/v1/namespaces/default/serviceaccounts/default") is not None

    def make_default_account(self) -> None:
        """Writes the ServiceAccount that the controllers would write a second later; theirs may have come first."""
        body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        path = "/api/v1/namespaces/default/serviceaccounts"
        try:
            self.request(path, method="POST", body=body, content_type="application/json")
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise

    def node_ready(self) -> bool:
        """Whether the node `local` has the condition Ready."""
        node = self.find("/api/v1/nodes/local") or {}
        conditions = node.get("status", {}).get("conditions", [])
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def set_gpus(self, count: int) -> None:
        """Gives the node pretend GPUs: an extended resource on its status, which the kubelet leaves alone."""
        self.request(
            "/api/v1/nodes/local/status",
            method="PATCH",
            # Allocatable, too: the kubelet would else copy it there at its next report, ten seconds later.
            body=[
                {"op": "add", "path": f"/status/{field}/nvidia.com~1gpu", "value": str(count)}
                for field in ("capacity", "allocatable")
            ],
            content_type="application/json-patch+json",
        )
