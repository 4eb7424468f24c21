"""A small server that speaks the part of the Hugging Face hub's protocol that a download needs.

Model info and files by revision, `X-Repo-Commit` and `ETag` headers, ranges, tokens, and the hub's error codes.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.trainer.serving import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the server holds, and what it was asked."""

    endpoint: str = ""
    models: dict[str, Path] = field(default_factory=dict)
    """Name to folder."""
    datasets: dict[str, Path] = field(default_factory=dict)
    """Name to folder, which may have folders."""
    commits: dict[str, str] = field(default_factory=dict)
    """Name to the commit of `main` where it is not COMMIT; files are the same at every commit."""
    gated: dict[str, str] = field(default_factory=dict)
    """Name to the one token that may read it."""
    broken: bool = False
    """Answer 503 to everything."""
    requests: list[str] = field(default_factory=list)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub on a free loopback port."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield hub


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            hub.requests.append(format % args)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            status, headers, body = _answer(hub, self.path, self.headers.get("Authorization"))
            wanted = self.headers.get("Range")
            if status == 200 and wanted and self.command == "GET":
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                status, body = 206, body[start:]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


def _answer(hub: FakeHub, path: str, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
    if hub.broken:
        return 503, {}, b"overloaded"
    api = path.startswith("/api/")
    path = path.removeprefix("/api").lstrip("/")
    held = hub.datasets if path.startswith("datasets/") else hub.models
    owner, name, _, *rest = path.removeprefix("datasets/").removeprefix("models/").split("/")
    model = f"{owner}/{name}"
    folder = held.get(model)
    if folder is None:
        return _error(401 if authorization is None else 404, "RepoNotFound", "Repository not found")
    if model in hub.gated and authorization != f"Bearer {hub.gated[model]}":
        return _error(403, "GatedRepo", "Access to this model is restricted")
    commit = hub.commits.get(model, COMMIT) if rest[0] == "main" else rest[0]
    if commit not in (COMMIT, hub.commits.get(model, COMMIT)):
        return _error(404, "RevisionNotFound", "Invalid rev id")
    if api:
        names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        files = [{"rfilename": name} for name in names]
        info = {"id": model, "sha": commit, "siblings": files, "private": False, "tags": [], "downloads": 0}
        return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
    file = folder.joinpath(*rest[1:])
    if not file.is_file():
        return _error(404, "EntryNotFound", "Entry not found")
    body = file.read_bytes()
    return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body


def _error(status: int, code: str, message: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": message}, b""
