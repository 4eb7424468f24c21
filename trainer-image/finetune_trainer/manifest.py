"""Files as manifests list them: by name, size and SHA-256. Loads without torch."""

from pathlib import Path

from finetune_api.base import Model

from finetune_trainer.store import sha256_of


class ManifestFile(Model):
    """One file of a stored folder."""

    name: str
    """Relative to the folder."""
    size: int
    """Bytes."""
    sha256: str

    def matches(self, path: Path) -> bool:
        """Whether `path` holds these very bytes."""
        return path.stat().st_size == self.size and sha256_of(path) == self.sha256


def described(folder: Path, name: str) -> ManifestFile:
    """The file `name` of a folder."""
    path = folder / name
    return ManifestFile(name=name, size=path.stat().st_size, sha256=sha256_of(path))
