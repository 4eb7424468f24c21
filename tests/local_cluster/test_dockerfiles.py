"""The Dockerfiles as another builder reads them: buildah makes the same image as tests/cluster/image_builder.py."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.image_builder import HOST_ARGUMENTS
from tests.cluster.images import DOCKERFILES, ROOT, build, layer_cache

BASE = "localhost/base:test"


class Buildah:
    """Buildah with a storage of its own; the vfs driver mounts nothing that a test could leave behind."""

    def __init__(self, folder: Path) -> None:
        self.options = ["--storage-driver", "vfs", "--root", str(folder / "root"), "--runroot", str(folder / "run")]

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(["buildah", *self.options, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()


@pytest.fixture
def buildah(tmp_path: Path) -> Iterator[Buildah]:
    if os.geteuid() != 0 or shutil.which("buildah") is None:
        pytest.skip("needs root and buildah")
    yield Buildah(tmp_path / "storage")
    shutil.rmtree(tmp_path / "storage", ignore_errors=True)


@pytest.mark.cluster
@pytest.mark.slow
def test_buildah_makes_the_same_files_from_the_operators_dockerfile(buildah: Buildah, tmp_path: Path) -> None:
    image = build(("operator",))["operator"]
    folders = [layer_cache().folder(digest) for digest in image.digests]
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\nENV PATH=/usr/bin:/bin\n")
    buildah("bud", "--isolation", "chroot", "--tag", BASE, "--file", str(tmp_path / "Dockerfile"), str(folders[0]))
    mounts = [
        "--volume", "/etc/ssl/certs:/etc/ssl/certs:ro",
        "--build-arg", f"SSL_CERT_FILE={HOST_ARGUMENTS['SSL_CERT_FILE']}",
        "--build-arg", f"PIP_CERT={HOST_ARGUMENTS['PIP_CERT']}",
    ]  # fmt: skip
    buildah(
        "bud", "--isolation", "chroot", "--network", "host", "--pull-never", *mounts,
        "--build-arg", f"BASE_IMAGE={BASE}", "--tag", "localhost/operator:test",
        "--file", str(ROOT / DOCKERFILES["operator"]), str(ROOT),
    )  # fmt: skip
    theirs = Path(buildah("mount", buildah("from", "--pull-never", "localhost/operator:test")))
    ours = set().union(*(_files(folder) for folder in folders[1:]))
    assert ours
    assert _files(theirs) == ours


def _files(root: Path) -> set[str]:
    """The paths of all files that the Dockerfile adds."""
    added = (root / "app", root / "opt/venv")
    return {str(path.relative_to(root)) for folder in added for path in folder.rglob("*") if not path.is_dir()}
