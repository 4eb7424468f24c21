"""A small HTTP server that takes progress reports and remembers them."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from finetune_api.run import ProgressReport

from tests.trainer.serving import serving


@dataclass
class Received:
    """What came in."""

    url: str = ""
    reports: list[ProgressReport] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    refusals_left: int = 0
    """So many more reports are answered with 503."""


@contextmanager
def reports_server(refusals: int = 0, pki: Path | None = None) -> Iterator[Received]:
    """A server on a free port of this machine; with `pki` by https, as `server.crt` in there says."""
    received = Received(refusals_left=refusals)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            refused = received.refusals_left > 0
            if refused:
                received.refusals_left -= 1
            else:
                received.reports.append(ProgressReport.model_validate_json(body))
                received.tokens.append(self.headers["Authorization"])
            self.send_response(503 if refused else 204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if pki:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki / "server.crt", pki / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    received.url = f"http{'s' if pki else ''}://127.0.0.1:{server.server_port}/v1/progress"
    with serving(server):
        yield received
