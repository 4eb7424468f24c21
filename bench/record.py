"""Results of a benchmark: JSON for programs, a Markdown table for people, both with versions and the machine."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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


@dataclass
class Table:
    """Runs by method, each method with the same trainers: one table, with the ratio of `ours` to `theirs`."""

    title: str
    command: str
    """How it is made."""
    threads: int
    ours: str
    theirs: str
    runs: dict[str, list[Run]] = field(default_factory=dict)
    peaks: dict[str, dict[str, int]] = field(default_factory=dict)
    """Peak memory in bytes, by method and trainer."""

    def add(self, method: str, runs: list[Run], peaks: dict[str, int]) -> None:
        """The runs of one more method."""
        self.runs[method], self.peaks[method] = runs, peaks

    def ratio(self, method: str) -> float:
        """Tokens per second of ours over theirs, medians of both."""
        ours, theirs = (summary(self.runs[method], who) for who in (self.ours, self.theirs))
        return ours.tokens_per_second / theirs.tokens_per_second

    def write(self, name: str) -> None:
        """`results/<name>-<machine>.json` and `.md`."""
        facts = machine()
        path = RESULTS / f"{name}-{machine_words(facts)}.json"
        record = {"machine": facts, "threads": self.threads, "ratios": {m: round(self.ratio(m), 3) for m in self.runs}}
        record["runs"] = {method: [asdict(run) for run in runs] for method, runs in self.runs.items()}
        record["peak_bytes"] = self.peaks
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(self.page(facts), encoding="utf-8")
        print(self.page(facts))

    def page(self, facts: dict[str, object]) -> str:
        """The result as a page."""
        shares = [run.others_share for runs in self.runs.values() for run in runs]
        versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
        lines = [
            f"# {self.title}",
            "",
            f"{facts['cpu']}, {facts['cores']} cores, {self.threads} threads, fp32. {versions}.",
            f"Other programs took {min(shares):.0%} to {max(shares):.0%} of the processor meanwhile.",
            f"Made by `{self.command}`.",
            "",
            f"| method | trainer | tokens/s without padding | steps/s | dev loss | peak memory | {self.ours} to it |",
            "|--|--|--|--|--|--|--|",
        ]
        return "\n".join([*lines, *(row for method in self.runs for row in self._rows(method)), ""])

    def _rows(self, method: str) -> list[str]:
        ours = summary(self.runs[method], self.ours)
        chosen = [summary(self.runs[method], who) for who in dict.fromkeys(run.who for run in self.runs[method])]
        return [
            f"| {method} | {run.who} | {run.tokens_per_second:,.0f} | {run.steps_per_second:.2f} | {run.dev_loss:.4f} "
            f"| {self.peaks[method][run.who] / 2**20:,.0f} MiB "
            f"| {ours.tokens_per_second / run.tokens_per_second:.2f} x |"
            for run in chosen
        ]


def machine_words(facts: dict[str, object]) -> str:
    """The machine in a file's name."""
    return re.sub("[^a-z0-9]+", "-", f"{facts['cpu']} {facts['cores']} cores".lower()).strip("-")


def write(runs: Sequence[Run], ours: Run, theirs: Run, threads: int) -> None:
    """`results/steps-<machine>.json` and `.md`."""
    facts = machine()
    words = machine_words(facts)
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
