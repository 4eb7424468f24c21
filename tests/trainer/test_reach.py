"""No connection leads to a metadata service, whatever the name, and whoever makes it."""

import socket
import subprocess
import sys

import pytest
from finetune_api.run import StorageAccess
from finetune_trainer.errors import RunError
from finetune_trainer.reach import check_endpoint, look_up
from finetune_trainer.s3_place import s3_client

ATTEMPTS = """
import http.client, socket, urllib.request
from finetune_trainer.reach import AddressForbidden, guard
guard()
for attempt in (
    lambda: socket.create_connection(("169.254.169.254", 80), 1),
    lambda: http.client.HTTPConnection("169.254.1", timeout=1).connect(),
    lambda: urllib.request.urlopen("http://100.100.100.200/latest", timeout=1),
    lambda: socket.socket(socket.AF_INET6).connect(("fe80::1", 80)),
    lambda: socket.socket().connect_ex(("168.63.129.16", 80)),
):
    try:
        attempt()
    except AddressForbidden as error:
        print("refused", error)
try:
    socket.create_connection(("127.0.0.1", 1), 1)
except ConnectionRefusedError:
    print("tried")
"""


def test_a_guarded_process_reaches_no_metadata_service_by_any_library() -> None:
    done = subprocess.run([sys.executable, "-c", ATTEMPTS], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["refused"] * 5 + ["tried"]


@pytest.mark.parametrize("endpoint", ["http://169.254.169.254", "http://2852039166/x", "https://[fe80::1]:9000"])
def test_an_endpoint_that_is_one_is_refused_before_anything_is_sent(endpoint: str) -> None:
    with pytest.raises(RunError, match=r"storage\.endpoint") as caught:
        s3_client(StorageAccess(endpoint=endpoint))
    assert (caught.value.failure_class, caught.value.reason) == ("InvalidConfig", "AddressForbidden")


def test_an_endpoint_is_judged_by_every_address_of_its_name() -> None:
    def rebound(host: str, port: int) -> list[str]:
        assert (host, port) == ("s3.example", 9000)
        return ["10.0.0.7", "169.254.169.254"]

    with pytest.raises(RunError, match=r"169\.254\.169\.254"):
        check_endpoint("http://s3.example:9000", rebound)
    check_endpoint("http://s3.example", lambda host, port: ["10.0.0.7"])
    check_endpoint("")


def test_a_name_that_nobody_knows_is_left_to_whoever_connects() -> None:
    assert look_up("no-such-host.invalid", 443) == []
    assert "127.0.0.1" in look_up("localhost", socket.getservbyname("https"))
