"""Gives containerd an image whose layers are folders: hard links in place of archives.

A layer is built as the upper folder of an overlay mount, and containerd's overlayfs snapshotter keeps layers in just
that form (a removed file is a device node, a replaced folder has an attribute). So a layer becomes a committed snapshot
named by its chain id, made of hard links, and only manifest and configuration are imported. containerd then has what
a pull with `discard_unpacked_layers` leaves. Limits: one machine, overlayfs, and both on one file system, else files
are copied. Why, and what it costs: docs/decisions/0002-loading-images.md.
"""

import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.problem import ClusterProblem

GC_ROOT = "containerd.io/gc.root"
"""The label that `ctr snapshots` puts on what it makes, and that keeps it for ever."""


@dataclass(frozen=True)
class ImageStore:
    """The images of one containerd that Kubernetes sees."""

    socket: Path
    """containerd's GRPC address; its client needs root."""

    def references(self) -> set[str]:
        """Names of all images."""
        return set(self._ctr("images", "ls", "-q").decode().split())

    def remove(self, references: set[str]) -> None:
        """Forgets these images, and frees the disk of what no other image or container uses."""
        if references:
            self._ctr("images", "rm", "--sync", *sorted(references))

    def adopt(self, reference: str, manifest: bytes, config: bytes, layers: tuple[Path, ...]) -> None:
        """Makes an image known under the reference, ready to start without unpacking.

        `layers` holds one folder for each of the configuration's diff ids, lowest first; the manifest is OCI's, and
        its layers need not exist as blobs. Safe to run again after it was broken off. Raises ClusterProblem when
        containerd refuses a step.
        """
        chains = chain_ids(json.loads(config)["rootfs"]["diff_ids"])
        parents = ["", *chains]
        present = self._snapshots()
        for chain, parent, layer in zip(chains, parents, layers, strict=False):
            if chain not in present:
                self._commit_layer(chain, parent, layer, present)
        # The import finds each chain id present, asks for no layer blob, and ties the snapshots to the configuration.
        self._ctr("images", "import", "-", stdin=image_archive(reference, manifest, config))
        for chain in chains:
            self._ctr("snapshots", "label", chain, f"{GC_ROOT}=")

    def _commit_layer(self, chain: str, parent: str, layer: Path, present: set[str]) -> None:
        draft = f"draft-{chain}"
        if draft in present:
            self._ctr("snapshots", "rm", draft)
        mounts = json.loads(self._ctr("snapshots", "prepare", "--mounts", draft, *([parent] if parent else [])))
        link_tree(layer, upper_directory(mounts))
        self._ctr("snapshots", "commit", chain, draft)

    def _snapshots(self) -> set[str]:
        rows = self._ctr("snapshots", "ls").decode().splitlines()[1:]
        return {row.split()[0] for row in rows if row.strip()}

    def _ctr(self, *arguments: str, stdin: bytes = b"") -> bytes:
        command = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)
        if done.returncode != 0:
            raise ClusterProblem(f"`{' '.join(command)}` failed: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout


def chain_ids(diff_ids: list[str]) -> list[str]:
    """The name of each layer's snapshot: a digest over it and all below. Source: OCI image spec, "Layer ChainID"."""
    chains: list[str] = []
    for diff in diff_ids:
        chains.append(sha256(f"{chains[-1]} {diff}".encode()) if chains else diff)
    return chains


def sha256(content: bytes) -> str:
    """An OCI digest: `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def upper_directory(mounts: list[dict[str, object]]) -> Path:
    """The folder that a writable snapshot's own files lie in, from containerd's mounts of it."""
    (mount,) = mounts
    options = mount.get("Options") or []
    assert isinstance(options, list)
    for option in options:
        if option.startswith("upperdir="):
            return Path(option.removeprefix("upperdir="))
    if mount["Type"] == "bind":  # A lowest layer has nothing to lie over.
        return Path(str(mount["Source"]))
    raise ClusterProblem(
        f"containerd keeps images as {mount['Type']}: only its overlayfs snapshotter is understood here. Is the "
        "cache folder itself on an overlay? Set XDG_CACHE_HOME to a folder on a disk."
    )


def link_tree(source: Path, target: Path) -> None:
    """Fills the empty folder `target` with `source`: hard links, or copies when they lie on two file systems.

    Keeps owners, modes, times, attributes and device nodes, those of the top folder too.
    """
    how = "--link" if source.stat().st_dev == target.stat().st_dev else "--reflink=auto"
    done = subprocess.run(
        ["cp", "--archive", how, f"{source}/.", str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ClusterProblem(f"Linking the image layer {source} failed: {done.stderr.strip().splitlines()[-1]}")


def image_archive(reference: str, manifest: bytes, config: bytes) -> bytes:
    """A tar file in the OCI image layout that holds one image without its layers."""
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": sha256(manifest),
                "size": len(manifest),
                "annotations": {"io.containerd.image.name": reference},
            }
        ],
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", json.dumps(index).encode())
        for blob in (manifest, config):
            _add(archive, f"blobs/sha256/{sha256(blob).removeprefix('sha256:')}", blob)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
