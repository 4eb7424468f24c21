"""Datasets by https, against a local TLS server, and the addresses that are refused."""

import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from finetune_trainer.errors import RunError
from finetune_trainer.web import TRIES, Opener, connect_public, download, is_forbidden

from tests.trainer.serving import serving

BODY = b'{"prompt": "a", "completion": "b"}\n' * 1000


@dataclass
class Site:
    """A server on loopback that calls itself data.example."""

    opener: Opener
    requests: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-days", "2", "-subj", "/CN=data.example", "-addext", "subjectAltName=DNS:data.example"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return folder


@pytest.fixture
def site(certificate: Path) -> Iterator[Site]:
    server = Server(("127.0.0.1", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    hosts: list[str] = []

    def connect(host: str, port: int) -> socket.socket:
        hosts.append(host)
        return socket.create_connection(("127.0.0.1", server.server_port), 5)

    found = Site(Opener(connect, trusting), hosts=hosts)
    Answers.requests = found.requests
    with serving(server):
        yield found


class Server(ThreadingHTTPServer):
    """Says nothing of clients that leave."""

    def handle_error(self, *_: object) -> None:
        pass


class Answers(BaseHTTPRequestHandler):
    """What each path answers."""

    requests: list[str]

    def log_message(self, format: str, *args: object) -> None:
        self.requests.append(self.path)

    def do_GET(self) -> None:
        name = self.path.strip("/").partition("?")[0]
        if name.isdigit():
            self.send_response(int(name))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[name])
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[:500] if name == "cut" else BODY)


REDIRECTS = {
    "moved": "https://data.example/rows.jsonl",
    "near": "/rows.jsonl",
    "plain": "http://data.example/rows.jsonl",
    "round": "/round",
    "file": "file:///etc/passwd",
}


def a_refusal(site: Site, name: str, tmp_path: Path) -> RunError:
    with pytest.raises(RunError) as caught:
        download(f"https://data.example/{name}", tmp_path / "rows", "dataset 'faq'", site.opener)
    return caught.value


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl?signature=secret", "moved", "near"])
def test_a_file_comes_whole_also_by_redirects(site: Site, tmp_path: Path, name: str) -> None:
    download(f"https://data.example/{name}", tmp_path / "rows", "dataset 'faq'", site.opener)
    assert (tmp_path / "rows").read_bytes() == BODY
    assert set(site.hosts) == {"data.example"}


@pytest.mark.parametrize("name", ["plain", "file", "round"])
def test_a_redirect_away_from_https_or_for_ever_is_refused(site: Site, tmp_path: Path, name: str) -> None:
    refusal = a_refusal(site, name, tmp_path)
    assert (refusal.failure_class, refusal.reason) == ("InvalidData", "RedirectRefused")


@pytest.mark.parametrize(
    ("name", "failure_class", "reason", "tries"),
    [
        ("404", "InvalidData", "DatasetNotFound", 1),
        ("403", "AccessDenied", "AccessDenied", 1),
        ("503", "Infrastructure", "DatasetUnavailable", TRIES),
        ("429", "Infrastructure", "DatasetUnavailable", TRIES),
        ("cut", "Infrastructure", "DatasetUnavailable", TRIES),
    ],
)
def test_what_the_server_says_decides_what_happens(
    site: Site, tmp_path: Path, name: str, failure_class: str, reason: str, tries: int
) -> None:
    refusal = a_refusal(site, name, tmp_path)
    assert (refusal.failure_class, refusal.reason) == (failure_class, reason)
    assert len(site.requests) == tries


def test_a_certificate_of_nobody_known_is_refused(site: Site, tmp_path: Path) -> None:
    distrusting = Opener(site.opener.connect, ssl.create_default_context())
    with pytest.raises(RunError) as caught:
        download("https://data.example/rows.jsonl", tmp_path / "rows", "dataset 'faq'", distrusting)
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidData", "CertificateInvalid")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "169.254.169.254", "0.0.0.0"])
def test_this_machine_and_metadata_services_are_not_connected_to(tmp_path: Path, host: str) -> None:
    with pytest.raises(RunError) as caught:
        download(f"https://{host}/latest", tmp_path / "rows", "dataset 'faq'", Opener(connect_public))
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidData", "AddressForbidden")
    assert host in caught.value.message


@pytest.mark.parametrize(
    ("address", "forbidden"),
    [
        ("127.8.8.8", True),
        ("::1", True),
        ("169.254.169.254", True),
        ("fe80::1", True),
        ("::ffff:169.254.169.254", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("2002:7f00:1::", True),
        ("fd00:ec2::254", True),
        ("168.63.129.16", True),
        ("::", True),
        ("224.0.0.1", True),
        ("10.0.0.7", False),
        ("93.184.216.34", False),
        ("2606:2800:220:1::1", False),
    ],
)
def test_addresses_behind_which_no_dataset_is_are_forbidden(address: str, forbidden: bool) -> None:
    assert is_forbidden(ip_address(address)) is forbidden
