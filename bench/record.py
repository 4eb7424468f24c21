"""Results of a benchmark: JSON for programs, a Markdown table for people, both with versions and the machine."""

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate")


@dataclass(frozen=True)
class Run:
    """One training."""

    who: str
    seconds: float
    steps: int
    tokens: int
    """Tokens of the rows that were trained, padding left out."""
    dev_loss: float

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def summary(runs: Sequence[Run], who: str) -> Run:
    """The run of median time."""
    found = sorted((run for run in runs if run.who == who), key=lambda run: run.seconds)
    return found[(len(found) - 1) // 2]


def write(runs: Sequence[Run], ours: Run, theirs: Run, threads: int) -> None:
    """`results/steps-<machine>.json` and `.md`."""
    machine = processor()
    name = f"steps-{re.sub('[^a-z0-9]+', '-', machine.lower()).strip('-')}-{os.cpu_count()}-cores"
    facts = {
        "processor": machine,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    ratio = round(ours.steps_per_second / theirs.steps_per_second, 3)
    RESULTS.mkdir(exist_ok=True)
    record = {"machine": facts, "ratio": ratio, "runs": [asdict(run) for run in runs]}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(page(runs, (ours, theirs), machine, threads), encoding="utf-8")


def page(runs: Sequence[Run], chosen: tuple[Run, Run], machine: str, threads: int) -> str:
    """The result as a page."""
    ours, theirs = chosen
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    lines = [
        "# Training steps per second on the quickstart's model and rows",
        "",
        f"{machine}, {os.cpu_count()} cores, {threads} threads, fp32. {versions}. `make bench-steps` writes this page.",
        f"Median of {len(runs) // 2} runs each, taking turns; {ours.steps} steps of the same rows in the same order.",
        "",
        "| trainer | steps/s | tokens/s without padding | dev loss | all runs, steps/s |",
        "|--|--|--|--|--|",
    ]
    for run in chosen:
        all_runs = ", ".join(f"{other.steps_per_second:.2f}" for other in runs if other.who == run.who)
        cells = [f"{run.steps_per_second:.2f}", f"{run.tokens_per_second:,.0f}", f"{run.dev_loss:.4f}", all_runs]
        lines.append(f"| {' | '.join([run.who, *cells])} |")
    ratio = ours.steps_per_second / theirs.steps_per_second
    return "\n".join([*lines, "", f"{ours.who} makes {ratio:.2f} times the steps of {theirs.who}.", ""])


def processor() -> str:
    """The processor's name as Linux tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()
