"""What this process may connect to: anything but its node's own link and a cloud's metadata service.

The endpoint of S3 is looked up and refused with a sentence. Every connection that Python makes is then looked at once
more, for the very address that is connected to: a name may lead elsewhere by then, and libraries follow redirects.
"""

import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from finetune_api.addresses import is_metadata, literal
from finetune_api.names import FailureClass
from finetune_api.reasons import Reason

from finetune_trainer.errors import RunError

CREDENTIAL_AGENTS = frozenset(map(ip_address, ("169.254.170.2", "169.254.170.23", "fd00:ec2::23")))
"""What gives a pod its own credentials: of ECS, and EKS Pod Identity. Both want a secret that only that pod has."""

Lookup = Callable[[str, int], Sequence[str]]


class AddressForbidden(Exception):
    """A connection to an address that no run has business with."""


def look_up(host: str, port: int) -> list[str]:
    """The addresses of a host; none where the name is not known."""
    with suppress(socket.gaierror):
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    return []


def check_endpoint(url: str, look_up: Lookup = look_up) -> None:
    """Raises RunError (InvalidConfig) where the host of a URL leads to such an address; an empty URL is AWS."""
    parts = urlsplit(url)
    for text in look_up(parts.hostname, parts.port or 443) if parts.hostname else ():
        address = literal(text)
        if address is not None and is_metadata(address):
            raise RunError(
                FailureClass.INVALID_CONFIG,
                Reason.ADDRESS_FORBIDDEN,
                f"storage.endpoint {url} has the address {text}, on the link of the node or of a metadata service",
                "Name the S3 server that is meant.",
            )


def guard() -> None:
    """From now on no connection of this process leads to such an address. Once is enough; it cannot be undone."""
    if not _GUARDS:
        _GUARDS.append(True)
        sys.addaudithook(_look_at)


_GUARDS: list[bool] = []


def _look_at(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        address = literal(str(arguments[1][0]))
        if address is not None and is_metadata(address) and address not in CREDENTIAL_AGENTS:
            raise AddressForbidden(f"{address} is on the link of the node, or a metadata service")
