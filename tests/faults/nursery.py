"""Operators by the dozen, each a process of its own that can be killed: forked from one that has imported everything.

`python -m tests.faults.nursery` is that process: it reads one order a line, and answers with the pid of the operator it
has forked. A Python that has to import kopf first would need more than a second of processor time for each.
"""

import gc
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.light import free_port


@dataclass
class OperatorProcess:
    """A running operator."""

    pid: int
    handle: int = field(init=False)
    """Becomes readable when the process has ended. Source: pidfd_open(2)."""

    def __post_init__(self) -> None:
        self.handle = os.pidfd_open(self.pid)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; one that has ended is past caring."""
        try:
            signal.pidfd_send_signal(self.handle, number)
        except ProcessLookupError:
            return


class Nursery:
    """Starts operators; each writes its log to `<name>.log` in the folder."""

    def __init__(self, zygote: subprocess.Popen[str], folder: Path) -> None:
        self._zygote = zygote
        self.folder = folder

    def start(self, name: str, **settings: Any) -> OperatorProcess:
        """An operator with these settings, beside those that it has to have."""
        port = free_port()
        text = {"trainerImage": "trainer:test", "reportUrl": f"http://127.0.0.1:{port}", "listenPort": port}
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(text | {"logFormat": "text"} | settings))
        order = {"settings": str(file), "log": str(self.folder / f"{name}.log")}
        assert self._zygote.stdin
        assert self._zygote.stdout
        self._zygote.stdin.write(json.dumps(order) + "\n")
        self._zygote.stdin.flush()
        return OperatorProcess(int(self._zygote.stdout.readline()))


@contextmanager
def nursery(kubeconfig: Path, folder: Path) -> Iterator[Nursery]:
    """A nursery for operators that use this kubeconfig; all are killed at its end."""
    command = [sys.executable, "-m", "tests.faults.nursery"]
    environment = os.environ | {"KUBECONFIG": str(kubeconfig)}  # Read when the client is imported.
    zygote = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, process_group=0
    )
    with zygote:
        try:
            yield Nursery(zygote, folder)
        finally:
            os.killpg(zygote.pid, signal.SIGKILL)


def _serve() -> None:
    """Fork an operator for each order."""
    import finetune_operator.__main__  # noqa: F401 - here, and not in the tests that import this module.
    import kubernetes.aio.client  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for them: they leave no zombies.
    gc.freeze()  # The children would else copy every page whose objects are looked at.
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become_operator(**json.loads(line))
        print(pid, flush=True)


def _become_operator(settings: str, log: str) -> None:
    from finetune_operator.__main__ import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with open(os.devnull) as nothing, open(log, "a") as output:
        for number, file in ((0, nothing), (1, output), (2, output)):
            os.dup2(file.fileno(), number)
    try:
        code = main(["--settings", settings])
    except Exception:
        logging.getLogger(__name__).exception("the operator has ended")
        code = 1
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
