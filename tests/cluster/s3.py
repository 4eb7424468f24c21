"""S3 for tests: versitygw with a folder behind it, as a process on this machine or as a Deployment in the cluster."""

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.binaries import built_binaries
from tests.cluster.light import ADDRESS, free_port
from tests.cluster.packages import LIGHT, require_packages
from tests.cluster.paths import SOURCE
from tests.cluster.processes import start, stop, wait_for

ACCESS_KEY = "local-access-key"
SECRET_KEY = "local-secret-key"
REGION = "us-east-1"
CLUSTER_ENDPOINT = "http://s3.s3.svc:7070"
"""Where pods find it."""

MANIFEST = SOURCE / "manifests" / "s3.yaml"


@dataclass(frozen=True)
class S3:
    """Where an S3 answers and with which keys."""

    endpoint: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    region: str = REGION


@contextlib.contextmanager
def s3_process(directory: Path) -> Iterator[S3]:
    """versitygw on a free loopback port with its buckets below `directory`; gone at the end, also after a crash."""
    require_packages(LIGHT)
    data, sidecar, port = directory / "data", directory / "sidecar", free_port()
    for folder in (data, sidecar):
        folder.mkdir(parents=True, exist_ok=True)
    # The sidecar holds what else would be extended attributes, which not every file system has.
    command = [str(built_binaries() / "versitygw"), "--port", f"{ADDRESS}:{port}", "--region", REGION,
               "posix", "--sidecar", str(sidecar), str(data)]  # fmt: skip
    log = directory / "versitygw.log"
    keys = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    process = start("versitygw", command, run=directory / "run", log=log, cwd=directory, environment=keys, bound=True)
    try:
        wait_for("versitygw", lambda: _listens(port), 20, process, log)
        yield S3(f"http://{ADDRESS}:{port}")
    finally:
        stop([process], ask_seconds=0)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((ADDRESS, port)) == 0


def s3_manifest(image: str) -> str:
    """Namespace, Secret, Deployment and Service of the cluster's S3, with its image's reference put in."""
    text = MANIFEST.read_text()
    for name, value in {"IMAGE": image, "ACCESS_KEY": ACCESS_KEY, "SECRET_KEY": SECRET_KEY, "REGION": REGION}.items():
        text = text.replace(f"${{{name}}}", value)
    return text
