"""The operator as a process of its own against a real API server, and kubectl beside it, as its user has it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Kubectl:
    """kubectl with one kubeconfig."""

    program: Path
    kubeconfig: Path

    def __call__(self, *arguments: str, stdin: object = None) -> str:
        """Run it; `stdin` is sent as JSON. Raises AssertionError with kubectl's own words."""
        done = subprocess.run(
            [self.program, *arguments],
            env=os.environ | {"KUBECONFIG": str(self.kubeconfig)},
            input=None if stdin is None else json.dumps(stdin),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get … -o json`."""
        return dict(json.loads(self("get", *arguments, "-o", "json")))

    def apply(self, body: dict[str, Any]) -> None:
        """`kubectl apply -f -`."""
        self("apply", "-f", "-", stdin=body)

    def set_status(self, kind: str, namespace: str, name: str, status: dict[str, Any]) -> None:
        """What a kubelet or a controller would write."""
        patch = json.dumps({"status": status})
        self("patch", kind, name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)


def eventually(probe: Callable[[], Any], seconds: float = 30) -> Any:
    """The first true answer of `probe`; its last error or answer is shown when none comes."""
    deadline, answer = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            answer = probe()
        except (AssertionError, OSError) as error:
            answer = error
        else:
            if answer:
                return answer
        time.sleep(0.1)
    raise AssertionError(f"it did not happen within {seconds} s; last seen: {answer}")


@contextmanager
def running_operator(
    kubeconfig: Path, directory: Path, port: int, **settings: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m finetune_operator` against this API server, stopped by SIGTERM at the end; its log is operator.log.

    Each has a Lease of its own, where `settings` names none.
    """
    file = directory / f"settings-{port}.yaml"
    text = {"trainerImage": "trainer:test", "reportUrl": f"http://127.0.0.1:{port}", "listenPort": port}
    text |= {"leaseName": f"operator-{port}"} | settings
    file.write_text(json.dumps(text | {"logFormat": "text"}))
    with (directory / "operator.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune_operator", "--settings", str(file)],
            env=os.environ | {"KUBECONFIG": str(kubeconfig)},
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)
