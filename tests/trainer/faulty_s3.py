"""S3 on a bad day: a proxy in front of a real one that breaks calls, and a small server with bad habits."""

import hashlib
import http.client
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR
from typing import Any
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

FOREVER = 10**6
HOP_BY_HOP = {"connection", "expect", "transfer-encoding", "keep-alive"}


@dataclass
class Fault:
    """What happens to the next `times` calls of `method` whose path and query hold `target`."""

    method: str
    target: str
    times: int = 1
    status: int = 0
    """Answer with this status and `code`, without asking the real server."""
    code: str = "InternalError"
    cut_request_at: int | None = None
    """Read so many bytes of the body, then close the connection."""
    cut_answer_at: int | None = None
    """Ask the real server, send so many bytes of its answer's body, then close the connection."""
    flip_request: bool = False
    """Change the last byte of the body on its way to the server."""
    flip_answer: bool = False
    """Change the last byte of the answer's body."""


class Handler(BaseHTTPRequestHandler):
    """Reads whole calls; one per connection."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do_any(self) -> None:
        self.server.calls.append((self.command, self.path))
        self.close_connection = True
        self.serve()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any  # noqa: N815 (http.server's names)

    def serve(self) -> None:
        raise NotImplementedError

    def body(self, most: int | None = None) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length if most is None else min(most, length))

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{escape(code)} was injected</Message></Error>"
        self.answer(status, text.encode(), {"Content-Type": "application/xml"})

    def hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class ProxyHandler(Handler):
    """Hands a call on to the real server, unless a fault is due."""

    def serve(self) -> None:
        fault = self.server.due(self.command, self.path)
        if fault is None:
            self.answer(*self.asked(self.body()))
        elif fault.status:
            self.body()
            self.error(fault.status, fault.code)
        elif fault.cut_request_at is not None:
            self.body(fault.cut_request_at)
            self.hang_up()
        elif fault.flip_request:
            self.answer(*self.asked(flipped(self.body())))
        else:
            self.spoilt_answer(fault)

    def spoilt_answer(self, fault: Fault) -> None:
        status, body, headers = self.asked(self.body())
        if fault.flip_answer:
            return self.answer(status, flipped(body), headers)
        self.answer(status, body[: fault.cut_answer_at], headers)
        return self.hang_up()

    def asked(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=20)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
        return answer.status, data, kept


class Server(ThreadingHTTPServer):
    """On a free loopback port; remembers every call."""

    daemon_threads = True

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.calls: list[tuple[str, str]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what these tests are about."""


class FaultyProxy(Server):
    """In front of a real S3; does what `faults` say."""

    def __init__(self, upstream: str) -> None:
        super().__init__(ProxyHandler)
        self.upstream = urlsplit(upstream).netloc
        self.faults: list[Fault] = []
        self._lock = threading.Lock()

    def due(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.target in path:
                    fault.times -= 1
                    return fault
        return None


@dataclass
class Habits:
    """How a server differs from S3."""

    refuses_checksums: int = 0
    """Status with which it refuses a checksum header; 0 = it takes them."""
    ignores_conditions: bool = False
    refuses_conditions: bool = False
    damages: str = ""
    """Keys that hold this text are stored with another last byte."""


@dataclass(frozen=True)
class Stored:
    body: bytes
    checksum: str | None


@dataclass
class FakeS3(Server):
    """Whole objects in memory, no credentials looked at, no multipart."""

    habits: Habits = field(default_factory=Habits)
    objects: dict[str, Stored] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(FakeHandler)


class FakeHandler(Handler):
    def serve(self) -> None:
        key, body = urlsplit(self.path).path, self.body()
        if self.command == "PUT":
            self.put(key, body)
        elif self.command == "DELETE":
            self.server.objects.pop(key, None)
            self.answer(204)
        elif key not in self.server.objects:
            self.error(404, "NoSuchKey")
        else:
            stored = self.server.objects[key]
            headers = {"ETag": f'"{hashlib.md5(stored.body).hexdigest()}"', "Content-Length": str(len(stored.body))}
            if stored.checksum and "x-amz-checksum-mode" in self.headers:
                headers["x-amz-checksum-sha256"] = stored.checksum
            self.answer(200, stored.body, headers)

    def put(self, key: str, body: bytes) -> None:
        habits, checksum = self.server.habits, self.headers.get("x-amz-checksum-sha256")
        if checksum and habits.refuses_checksums:
            return self.error(habits.refuses_checksums, "InvalidArgument")
        if "If-None-Match" in self.headers:
            if habits.refuses_conditions:
                return self.error(501, "NotImplemented")
            if key in self.server.objects and not habits.ignores_conditions:
                return self.error(412, "PreconditionFailed")
        kept = flipped(body) if habits.damages and habits.damages in key else body
        self.server.objects[key] = Stored(kept, checksum)
        return self.answer(200, headers={"ETag": f'"{hashlib.md5(kept).hexdigest()}"'})


def flipped(data: bytes) -> bytes:
    """The same with its last bit changed."""
    return data[:-1] + bytes([data[-1] ^ 1]) if data else data
