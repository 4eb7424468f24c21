"""pytest fixtures around the local cluster; `tests/conftest.py` names this module in `pytest_plugins`.

All are made once for a session. Under pytest-xdist each worker has its own light API server and S3 process, and all
share the one full cluster, which stays up afterwards: the next run starts where this one ended.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import local_cluster
from tests.cluster.light import LightCluster, light_api_server
from tests.cluster.s3 import S3, s3_process


@pytest.fixture(scope="session")
def light_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightCluster]:
    """A real API server with controllers and no node, for this worker alone."""
    with light_api_server(tmp_path_factory.mktemp("light")) as light:
        yield light


@pytest.fixture(scope="session")
def cluster() -> local_cluster.Cluster:
    """The full cluster of this machine, started if need be. Skips where it cannot run: it needs root."""
    if os.geteuid() != 0:
        pytest.skip("the full local cluster needs root")
    return local_cluster.up()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """S3 as a process on this machine, for this worker alone."""
    folder: Path = tmp_path_factory.mktemp("s3")
    with s3_process(folder) as server:
        yield server
