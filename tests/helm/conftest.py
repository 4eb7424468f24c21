"""The chart, rendered by a real Helm."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.binaries import binary_folder

CHART = Path(__file__).parents[2] / "helm" / "finetune-operator"
IMAGES: dict[str, Any] = {"image": {"repository": "r.test/operator"}, "trainerImage": {"repository": "r.test/trainer"}}

Values = dict[str, Any]
Manifest = dict[str, Any]


class HelmRefusal(Exception):
    """Helm's own words."""


@dataclass(frozen=True)
class Chart:
    """The chart as a release in namespace `ft-system`."""

    helm: Path
    release: str = "ft"

    def render(self, values: Values | None = None) -> list[Manifest]:
        """Every object the chart makes with these values. Raises HelmRefusal."""
        text = self._run("template", self.release, str(CHART), "--namespace", "ft-system", values=values)
        return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]

    def one(self, kind: str, values: Values | None = None) -> Manifest:
        """The only object of this kind."""
        found = [manifest for manifest in self.render(values) if manifest["kind"] == kind]
        assert len(found) == 1, f"{len(found)} objects of kind {kind}"
        return found[0]

    def settings(self, values: Values | None = None) -> dict[str, Any]:
        """The settings file that the operator will read."""
        return dict(yaml.safe_load(self.one("ConfigMap", values)["data"]["settings.yaml"]))

    def lint(self) -> str:
        """What `helm lint --strict` says. Raises HelmRefusal."""
        return self._run("lint", str(CHART), "--strict")

    def _run(self, *arguments: str, values: Values | None = None) -> str:
        return run_helm((str(self.helm), *arguments, "--values", "-"), json.dumps(IMAGES | (values or {})))


@cache
def run_helm(command: tuple[str, ...], values: str) -> str:
    """What Helm prints. Kept: many tests look at the same objects. Raises HelmRefusal."""
    done = subprocess.run(command, input=values, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HelmRefusal(done.stderr + done.stdout)
    return done.stdout


@pytest.fixture(scope="session")
def chart() -> Chart:
    """The chart with the Helm of the local cluster, or the machine's; skips where neither is there."""
    built = binary_folder() / "helm"
    found = str(built) if built.exists() else shutil.which("helm")
    if found is None:
        pytest.skip("no helm: `python -m tests.cluster build` makes one")
    return Chart(Path(found))
