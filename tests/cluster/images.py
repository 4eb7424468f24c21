"""Builds the images of the tests and the quickstart, and loads them into the local cluster's containerd.

Every image is tagged by a digest of its inputs, so an unchanged tree builds nothing and loads nothing. The operator's
and trainer's Dockerfiles are the same that any other builder takes. Limits: one machine's kind and Python; an image
loaded here cannot be pushed, since its layers exist unpacked alone (docs/decisions/0002-loading-images.md).
"""

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.cluster.base_image import ENVIRONMENT, base_layer, build_base
from tests.cluster.binaries import built_binaries
from tests.cluster.dockerfile import read_recipe
from tests.cluster.image_builder import HOST_ARGUMENTS, Layer, LayerCache, planned_layers
from tests.cluster.image_store import ImageStore, sha256
from tests.cluster.locks import locked
from tests.cluster.packages import require_root
from tests.cluster.paths import cache_root

ROOT = Path(__file__).resolve().parents[2]
"""The repository: the context of the Dockerfiles."""

DOCKERFILES = {"operator": Path("operator/Dockerfile"), "trainer": Path("trainer-image/Dockerfile")}
"""Image -> its Dockerfile, relative to the repository."""

VERSITYGW = 'FROM scratch\nCOPY versitygw /versitygw\nUSER 65532:65532\nENTRYPOINT ["/versitygw"]\n'
"""The S3 server: one static program and nothing else."""

NAMES = (*DOCKERFILES, "versitygw")
"""Every image, in the order of building."""

LOCAL_BASE = "local base"
"""Stands for BASE_IMAGE in the Dockerfiles: the layer of base_image.py."""

WITHOUT_GPU = {"COMPILER": ""}
"""Build arguments that leave out what only a GPU needs."""

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


class HasContainerd(Protocol):
    """What loading needs of a cluster."""

    @property
    def containerd_socket(self) -> Path: ...


@dataclass(frozen=True)
class Image:
    """An image as its inputs say it must be, built or not."""

    name: str
    context: Path
    base: tuple[str, ...]
    """Digests of the base's layers; empty for `scratch`."""
    layers: tuple[Layer, ...]
    config: bytes
    """OCI configuration: a function of the inputs, so its digest names the image."""

    @property
    def reference(self) -> str:
        return f"localhost/{self.name}:{sha256(self.config).removeprefix('sha256:')[:12]}"

    @property
    def digests(self) -> list[str]:
        """All layers, lowest first."""
        return [*self.base, *(layer.digest for layer in self.layers)]


def planned_image(name: str, root: Path = ROOT) -> Image:
    """The image of this name for the present state of the sources in `root`.

    Raises ClusterProblem for a file that a Dockerfile copies and that is not there.
    """
    text = (root / DOCKERFILES[name]).read_text() if name in DOCKERFILES else VERSITYGW
    context = root if name in DOCKERFILES else built_binaries()
    arguments = {**HOST_ARGUMENTS, **WITHOUT_GPU, "BASE_IMAGE": LOCAL_BASE}
    recipe = read_recipe(text, arguments, ENVIRONMENT if name in DOCKERFILES else {})
    base = (base_layer(),) if recipe.base == LOCAL_BASE else ()
    layers = tuple(planned_layers(recipe.steps, base[-1] if base else "", context))
    return Image(name, context, base, layers, _config(recipe.config, [*base, *(layer.digest for layer in layers)]))


def _config(config: dict[str, object], digests: list[str]) -> bytes:
    """OCI image configuration. No date, so that the same inputs are the same image."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    rootfs = {"type": "layers", "diff_ids": digests}
    return json.dumps({"architecture": architecture, "os": "linux", "config": config, "rootfs": rootfs}).encode()


def _manifest(image: Image, cache: LayerCache) -> bytes:
    """OCI manifest. The layers' sizes are those on disk: the kubelet reports their sum."""
    media = "application/vnd.oci.image.manifest.v1+json"
    layers = [
        {"mediaType": LAYER_TYPE, "digest": digest, "size": _bytes_in(cache.folder(digest))} for digest in image.digests
    ]
    config = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": sha256(image.config),
        "size": len(image.config),
    }
    return json.dumps({"schemaVersion": 2, "mediaType": media, "config": config, "layers": layers}).encode()


def _bytes_in(folder: Path) -> int:
    done = subprocess.run(["du", "--bytes", "--summarize", str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def layer_cache() -> LayerCache:
    """The unpacked layers, beside the cluster's state: on one disk with it, so that loading is linking."""
    return LayerCache(cache_root() / "images" / "layers")


def build(names: Iterable[str] = NAMES) -> dict[str, Image]:
    """Builds what is missing of these images; needs no cluster. Needs root, debootstrap and package indexes.

    Raises ClusterProblem with the last words of the step that failed.
    """
    images = {name: planned_image(name) for name in names}
    cache = layer_cache()
    missing = [image for image in images.values() if not all(cache.folder(digest).exists() for digest in image.digests)]
    if missing:
        require_root()
        with locked(cache_root() / "images.lock", "building images", seconds=3600):
            for image in images.values():
                _record(image)
            for image in missing:
                print(f"Building {image.reference}", flush=True)
                base = [build_base(cache)] if image.base else []
                cache.build(list(image.layers), base, image.context)
            cache.prune(_recorded())
    return images


def build_and_load(cluster: HasContainerd, names: Sequence[str] = NAMES) -> dict[str, str]:
    """Builds and loads these images as far as they are not there; name -> reference to write into a manifest.

    Earlier builds of the same names go, from containerd and from the disk. Safe from several processes at once.
    """
    images = {name: planned_image(name) for name in names}
    store = ImageStore(cluster.containerd_socket)
    loaded = store.references()
    if any(image.reference not in loaded for image in images.values()):
        images = build(names)
        with locked(cache_root() / "images-load.lock", "loading images"):
            for image in images.values():
                _load(store, image)
    return {name: image.reference for name, image in images.items()}


def _load(store: ImageStore, image: Image) -> None:
    loaded = store.references()
    if image.reference in loaded:
        return
    started = time.monotonic()
    cache = layer_cache()
    folders = tuple(cache.folder(digest) for digest in image.digests)
    store.adopt(image.reference, _manifest(image, cache), image.config, folders)
    store.remove(superseded(image.name, loaded))
    print(f"Loaded {image.reference} ({time.monotonic() - started:.1f} s)", flush=True)


def superseded(name: str, loaded: set[str]) -> set[str]:
    """Of the loaded references those of an image's earlier builds, with the second name that Kubernetes gives each."""
    tags = [reference.rpartition(":")[2] for reference in loaded if reference.startswith(f"localhost/{name}:")]
    return {
        reference
        for reference in loaded
        if any(reference == f"localhost/{name}:{tag}" or reference.startswith(f"sha256:{tag}") for tag in tags)
    }


def _record(image: Image) -> None:
    """Writes down the layers of the image's last build; before it, so that what a failed build made is kept."""
    record = _records() / image.name
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text("\n".join(image.digests))


def _recorded() -> set[str]:
    """The layers of every image's last build."""
    return {digest for file in _records().iterdir() for digest in file.read_text().split()}


def _records() -> Path:
    return cache_root() / "images" / "built"


def main(arguments: Sequence[str]) -> int:
    """`load-image [--build-only] [NAME...]`: prints each image's name and reference."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster load-image", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(NAMES)} (all of them)")
    parser.add_argument("--build-only", action="store_true", help="build the layers; needs no running cluster")
    options = parser.parse_args(arguments)
    names = tuple(options.names) or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no image is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if options.build_only:
        references = {name: image.reference for name, image in build(names).items()}
    else:
        from tests.cluster.local_cluster import running  # Late: building alone must not need a cluster's parts.

        references = build_and_load(running(), names)
    for name, reference in references.items():
        print(f"{name} {reference}")
    return 0
