"""`judge`: what kstatus and Prometheus themselves say about what the project makes.

A small Go program of its own module (`go/`), built once (a minute and a half) and kept in the user's cache.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.binaries import compile_program, input_hash
from tests.cluster.golang import go_program
from tests.cluster.locks import locked
from tests.cluster.paths import cache_root

MODULE = Path(__file__).parent / "go"


@dataclass(frozen=True)
class Judge:
    """The built program."""

    path: Path

    def kstatus(self, objects: list[dict[str, Any]]) -> list[str]:
        """What `helm --wait` and Flux take each object for: Current, InProgress, Failed, Terminating, Unknown."""
        return list(self._ask("kstatus", json.dumps(objects)))

    def argo_health(self, script: str, objects: list[dict[str, Any]]) -> list[dict[str, str]]:
        """What Argo CD shows of each object by a health check in Lua: status and message."""
        return list(self._ask("health", json.dumps({"script": script, "objects": objects})))

    def rule_errors(self, rules: str) -> list[str]:
        """What Prometheus has against a file of rules."""
        return list(self._ask("rules", rules))

    def metrics(self, expressions: list[str]) -> list[list[str]]:
        """Which metrics each expression reads. Fails with Prometheus's words about one that it cannot parse."""
        return list(self._ask("metrics", json.dumps(expressions)))

    def values(self, series: str, expressions: list[str], minutes: float) -> list[dict[str, float]]:
        """What each expression gives after so many minutes of these series (in promtool's notation), by labels."""
        asked = [{"series": series, "expression": expression, "minutes": minutes} for expression in expressions]
        return list(self._ask("values", json.dumps(asked)))

    def _ask(self, command: str, text: str) -> Any:
        done = subprocess.run([self.path, command], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def judge() -> Judge:
    """The program; skips where it is not built."""
    if not program().exists():
        pytest.skip("no judge: `python -m tests.judge` makes one")
    return Judge(program())


def program() -> Path:
    """Where it lies for the present sources, built or not."""
    return cache_root() / "bin" / f"judge-{input_hash(MODULE)}"


def build() -> None:
    """Build it, unless it is there. Raises ClusterProblem where there is no Go, and none can be fetched."""
    with locked(cache_root() / "judge.lock", "the build of the judge"):
        if program().exists():
            return
        go = go_program(cache_root())
        program().parent.mkdir(parents=True, exist_ok=True)
        unfinished = program().with_suffix(".new")
        compile_program(go, MODULE, ".", unfinished)
        unfinished.rename(program())  # Renamed whole, so that nobody ever runs half of it.
