"""Results of a benchmark: JSON for programs, a Markdown table for people, both with versions and the machine."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from bench.machine import machine

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
    others_share: float
    """Share of all processor time that other programs took meanwhile: above a few percent, measure again."""

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
    facts = machine()
    words = re.sub("[^a-z0-9]+", "-", f"{facts['cpu']} {facts['cores']} cores".lower()).strip("-")
    ratio = round(ours.steps_per_second / theirs.steps_per_second, 3)
    record = {"machine": facts, "threads": threads, "ratio": ratio, "runs": [asdict(run) for run in runs]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"steps-{words}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"steps-{words}.md").write_text(page(runs, (ours, theirs), facts, threads), encoding="utf-8")


def page(runs: Sequence[Run], chosen: tuple[Run, Run], facts: dict[str, object], threads: int) -> str:
    """The result as a page."""
    ours, theirs = chosen
    shares = [run.others_share for run in runs]
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    lines = [
        "# Training steps per second on the quickstart's model and rows",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, {threads} threads, fp32. {versions}.",
        f"Median of {len(runs) // 2} runs each, taking turns; {ours.steps} steps of the same rows in the same order.",
        f"Other programs took {min(shares):.0%} to {max(shares):.0%} of the processor meanwhile.",
        "Made by `make bench-steps`.",
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
