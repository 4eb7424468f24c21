"""Network addresses that a run has no business with: a node's own link, and a cloud's metadata service. Pure.

Whoever reaches one of these from a pod may get what belongs to the node: its identity, its keys.
"""

import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address

METADATA = frozenset(map(ip_address, ("168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254")))
"""Metadata services beside 169.254.0.0/16: Azure's, Alibaba's, and by IPv6 Amazon's and Google's."""

NAT64 = ip_network("64:ff9b::/96")
"""IPv4 addresses as IPv6 ones. Source: RFC 6052, section 2.1."""


def inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def is_metadata(address: Address) -> bool:
    """Whether it is on the node's own link, or a metadata service's."""
    address = inner(address)
    return address.is_link_local or address in METADATA


def literal(host: str) -> Address | None:
    """The address that a host name spells, in every way that a C library reads; None for a name to be looked up."""
    with suppress(ValueError):
        return ip_address(host.partition("%")[0])
    try:
        return IPv4Address(socket.inet_aton(host))  # 2852039166, 0xa9fea9fe and 169.254.43518 are one address.
    except (OSError, UnicodeError):
        return None


def names_metadata(url: str) -> bool:
    """Whether the host of a URL is spelled as such an address. A name that leads to one is known by who connects."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # A bracket without its counterpart.
        return False
    address = literal(host.rstrip("."))
    return address is not None and is_metadata(address)
