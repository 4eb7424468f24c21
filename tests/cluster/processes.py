"""Background processes that are found again after a restart, a crash or a reboot, and never taken for another's."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.problem import ClusterProblem

ASK_SECONDS = 5.0
"""How long a process may take to leave by itself; an API server with open watches would take a minute."""


def started_at(pid: int) -> int | None:
    """The start time of a live process in clock ticks since boot, None when there is none (or a zombie).

    Source: proc(5), /proc/PID/stat, field 22. With the pid it names a process for good: a pid alone is used again.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True)
class Background:
    """One started process, written to a file so that a later command finds it."""

    name: str
    pid: int
    ticks: int

    @property
    def alive(self) -> bool:
        return started_at(self.pid) == self.ticks

    def kill(self, number: signal.Signals) -> None:
        """Sends the signal, if the process is still the one that was started."""
        if self.alive:
            signal_pid(self.pid, number)


def signal_pid(pid: int, number: signal.Signals) -> None:
    """Sends a signal; a process that has just gone is no error."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def start(
    name: str,
    command: list[str],
    *,
    run: Path,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    bound: bool = False,
) -> Background:
    """Starts a process in a session of its own, its output in `log`, its identity in `run/NAME.pid`.

    With `bound` the kernel kills it when the calling thread dies (PR_SET_PDEATHSIG, by util-linux's setpriv).
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command] if bound else command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    # A child that ends while we live stays a zombie until it is waited for; `started_at` counts that as gone.
    process.returncode = 0  # Popen would warn that the child outlives it; that is what is meant.
    background = Background(name, process.pid, started_at(process.pid) or 0)
    run.mkdir(parents=True, exist_ok=True)
    (run / f"{name}.pid").write_text(f"{background.pid} {background.ticks}\n")
    return background


def recorded(run: Path) -> list[Background]:
    """The processes whose identity lies in `run`, alive or not, sorted by name."""
    found = []
    for path in sorted(run.glob("*.pid")):
        pid, _, ticks = path.read_text().partition(" ")
        if pid.strip().isdigit() and ticks.strip().isdigit():
            found.append(Background(path.stem, int(pid), int(ticks)))
    return found


def stop(processes: Iterable[Background], *, ask_seconds: float = ASK_SECONDS) -> None:
    """Asks all of them to leave at once, then insists; returns when none is left."""
    processes = list(processes)
    if ask_seconds > 0:
        for process in processes:
            process.kill(signal.SIGTERM)
        wait_until(lambda: not any(process.alive for process in processes), ask_seconds)
    for process in processes:
        process.kill(signal.SIGKILL)
    wait_until(lambda: not any(process.alive for process in processes), ASK_SECONDS)
    for process in processes:
        reap(process.pid)


def reap(pid: int) -> None:
    """Takes a dead child of ours off the process table; another's child is init's to take."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Asks every 50 ms, for so many seconds at most; says whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def wait_for(what: str, condition: Callable[[], bool], seconds: float, process: Background, log: Path) -> None:
    """Waits for a component to answer. Raises ClusterProblem with the end of its log when it dies or stays silent."""
    answered = wait_until(lambda: not process.alive or condition(), seconds)
    if answered and process.alive:
        return
    fate = f"did not answer within {seconds:.0f} s" if process.alive else "stopped"
    raise ClusterProblem(f"{what} {fate}. The end of {log}:\n{last_lines(log, 12)}")


def last_lines(log: Path, count: int) -> str:
    """The last lines of a log file, empty when there is none."""
    if not log.is_file():
        return ""
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
