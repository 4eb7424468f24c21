"""Addresses that a run has no business with, however they are spelled."""

from ipaddress import ip_address

import pytest
from finetune_api.addresses import is_metadata, names_metadata


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.169.254.",
        "169.254.0.1",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "169.254.43518",
        "168.63.129.16",
        "100.100.100.200",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::]",
    ],
)
def test_a_metadata_service_is_known_by_every_spelling(host: str) -> None:
    for url in (f"http://{host}", f"https://{host}:8443/latest/meta-data", f"http://nobody@{host}/"):
        assert names_metadata(url)


@pytest.mark.parametrize(
    "url", ["", "s3://models/169.254.169.254", "https://data.example/169.254.169.254", "http://10.0.0.1:9000",
            "http://[fd00::1]", "http://localhost", "http://[", "http://169.254.169.254.example", "pvc://claim/x"],
)  # fmt: skip
def test_any_other_host_is_for_whoever_connects_to_it(url: str) -> None:
    assert not names_metadata(url)


def test_an_address_of_a_cluster_is_none() -> None:
    for text in ("10.96.0.1", "192.168.1.1", "127.0.0.1", "fd00::1", "2001:db8::1"):
        assert not is_metadata(ip_address(text))
