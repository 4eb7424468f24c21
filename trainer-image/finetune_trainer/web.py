"""One file by https, from a public address.

Whoever writes a Finetune must not reach through the trainer what only the cluster may reach: redirects stay on https,
and the addresses of this machine, of its link and of a cloud's metadata service are refused, after the name was
resolved and for the very address that is then connected to. Proxies are not supported.
"""

import errno
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx2
from finetune_api.addresses import Address, inner, is_metadata
from finetune_api.names import FailureClass

from finetune_trainer.errors import RunError

CONNECT_SECONDS = 10
READ_SECONDS = 60
TRIES = 3
"""Downloads in all, where the network or the server fails."""
MOST_REDIRECTS = 5
BLOCK_BYTES = 1024 * 1024

REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class Opener:
    """How connections are made; tests reach their own server by another one."""

    connect: Callable[[str, int], socket.socket] = field(default_factory=lambda: connect_public)
    context: ssl.SSLContext = field(default_factory=httpx2.create_ssl_context)


def download(url: str, path: Path, where: str, opener: Opener | None = None) -> None:
    """Write the file at an https URL to `path`; `where` names it in messages. Raises RunError.

    InvalidData: not there, redirected away from https, forbidden address, wrong certificate. AccessDenied: 401 or 403.
    Infrastructure: no answer, 429, 5xx, or fewer bytes than announced, after TRIES downloads.
    """
    opener = opener or Opener()
    for attempt in range(1, TRIES + 1):
        try:
            with _errors(where), _answer(url, where, opener) as response:
                _save(response, path, where)
            return
        except RunError as error:
            if error.failure_class is not FailureClass.INFRASTRUCTURE or attempt == TRIES:
                raise


def connect_public(host: str, port: int) -> socket.socket:
    """A connection to a host, unless one of its addresses is forbidden. Raises ForbiddenAddress and OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for text in addresses:
        if is_forbidden(ip_address(text.partition("%")[0])):
            raise ForbiddenAddress(f"{host} has the address {text}, which is not reachable for datasets")
    # The first that answers, of those that were looked at: the name is not resolved again.
    for text in addresses[:-1]:
        with suppress(OSError):
            return socket.create_connection((text, port), CONNECT_SECONDS)
    return socket.create_connection((addresses[-1], port), CONNECT_SECONDS)


class ForbiddenAddress(Exception):
    """The host is this machine, on its link, or a metadata service."""


def is_forbidden(address: Address) -> bool:
    """Whether the address is this machine's, its link's, a metadata service's, or nobody's."""
    address = inner(address)
    return (
        is_metadata(address)
        or address.is_loopback
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
    )


class _Connection(HTTPSConnection):
    """TLS over a socket of the opener."""

    def __init__(self, host: str, port: int, opener: Opener) -> None:
        super().__init__(host, port, context=opener.context)
        self.opener = opener

    def connect(self) -> None:
        plain = self.opener.connect(self.host, self.port)
        plain.settimeout(READ_SECONDS)
        try:
            self.sock = self.opener.context.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


@contextmanager
def _answer(url: str, where: str, opener: Opener) -> Iterator[HTTPResponse]:
    """The answer to a GET that is no redirect."""
    for _ in range(MOST_REDIRECTS + 1):
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.username:
            raise _refused("RedirectRefused", f"{where} leads to another place than https://HOST/PATH")
        connection = _Connection(parts.hostname, parts.port or 443, opener)
        try:
            target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
            headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "finetune-operator"}
            connection.request("GET", target, headers=headers)
            with connection.getresponse() as response:
                if response.status not in REDIRECTS:
                    _check_status(response, where)
                    yield response
                    return
                url = urljoin(url, response.getheader("Location") or "")
        finally:
            connection.close()
    raise _refused("RedirectRefused", f"{where} leads from place to place, more than {MOST_REDIRECTS} times")


def _check_status(response: HTTPResponse, where: str) -> None:
    status = response.status
    if status == 200:
        return
    if status in (401, 403):
        remedy = "Give a URL that anybody may read, or put the file into S3."
        raise RunError(FailureClass.ACCESS_DENIED, "AccessDenied", f"{where}: the server answers {status}", remedy)
    if status == 429 or status >= 500:
        raise _unavailable(f"{where}: the server answers {status}")
    raise RunError(
        FailureClass.INVALID_DATA,
        "DatasetNotFound",
        f"{where}: the server answers {status}",
        "Correct datasets[].uri.",
    )


def _save(response: HTTPResponse, path: Path, where: str) -> None:
    announced, got = response.length, 0
    with path.open("wb") as file:
        while block := response.read(BLOCK_BYTES):
            file.write(block)
            got += len(block)
    if announced is not None and announced != got:
        raise _unavailable(f"{where}: {got} of {announced} bytes came")


@contextmanager
def _errors(where: str) -> Iterator[None]:
    """What sockets, TLS and HTTP raise, in our words."""
    try:
        yield
    except ForbiddenAddress as error:
        raise _refused("AddressForbidden", f"{where}: {error}") from error
    except ssl.SSLCertVerificationError as error:
        raise _refused("CertificateInvalid", f"{where}: {error.verify_message}") from error
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            raise _refused("DatasetNotFound", f"{where}: there is no such host") from error
        raise _unavailable(f"{where}: {error}") from error
    except (HTTPException, OSError) as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
            raise  # The disk's, not the network's.
        raise _unavailable(f"{where}: {type(error).__name__} {error}") from error


def _refused(reason: str, message: str) -> RunError:
    return RunError(FailureClass.INVALID_DATA, reason, message, "Give a public https:// URL, or put the file into S3.")


def _unavailable(message: str) -> RunError:
    return RunError(FailureClass.INFRASTRUCTURE, "DatasetUnavailable", message)
