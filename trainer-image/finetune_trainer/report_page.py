"""`report.html`: one file that tells the run to a person, with no script and no request to anywhere.

Everything that a user, a data row or a model wrote is escaped; a content policy in the page forbids the rest. Pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from finetune_api.findings import EvaluationStatus
from finetune_api.metrics import METRICS
from finetune_api.words import shortened

from finetune_trainer.charts import Bar, Line, bar_chart, line_chart, number
from finetune_trainer.data_report import LengthBin

STYLE = (Path(__file__).parent / "report_page.css").read_text(encoding="utf-8")

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
MOST_SAMPLES = 20
SAMPLE_CHARACTERS = 2000
"""Longest text of a sample that is shown; `samples.jsonl` has them whole."""

Json = dict[str, Any]
Facts = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Run:
    """What the page is about."""

    name: str
    description: str
    facts: Facts
    """Where the model came from and what was done."""
    settings: Json
    """Hyperparameters in force."""
    evaluation: EvaluationStatus
    log: Sequence[Json]
    """Rows of the training log."""
    lengths: Sequence[LengthBin]
    samples: Sequence[Json]


def report_page(run: Run) -> str:
    """The page."""
    parts = [
        f"<header><h1>{escape(run.name)}</h1>{_paragraph(run.description)}</header>",
        _scores(run.evaluation),
        _charts(run),
        _samples(run.samples),
        _section("The run", _table(run.facts)),
        _section("Settings in force", _table([(key, str(value)) for key, value in run.settings.items()])),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(run.name)}</title><style>{STYLE}</style></head>\n<body><main>"
        + "\n".join(part for part in parts if part)
        + "</main></body></html>\n"
    )


def _scores(evaluation: EvaluationStatus) -> str:
    """One tile for each metric: base, tuned, and which way it went."""
    tiles = "".join(
        f'<div class="tile"><h3>{escape(METRICS[metric].words)}</h3>'
        f'<p class="score"><span>{_score(found.base)}</span><span class="arrow">→</span>'
        f'<strong class="{_direction(found.base, found.tuned, METRICS[metric].lower_is_better)}">'
        f"{_score(found.tuned)}</strong></p>{_merged(found.merged)}</div>"
        for metric, found in evaluation.measured().items()
    )
    if not tiles:
        return ""
    rows = f"Base → tuned, on {evaluation.rows or 0} rows; {evaluation.generated_rows or 0} of them generated."
    return _section("Before and after", f'<div class="tiles">{tiles}</div><p class="note">{rows}</p>')


def _charts(run: Run) -> str:
    loss = [
        Line("training loss", "first", _points(run.log, "trainingLoss")),
        Line("dev loss", "second", _points(run.log, "validationLoss")),
    ]
    rate = [Line("learning rate", "first", _points(run.log, "learningRate"))]
    norm = [Line("gradient norm", "first", _points(run.log, "gradNorm"))]
    bars = [Bar(part.from_tokens, part.to_tokens + 1, part.rows) for part in run.lengths]
    figures = [
        _figure("Loss", line_chart(loss, "step", "Loss over steps"), [line for line in loss if line.points]),
        _figure("Learning rate", line_chart(rate, "step", "Learning rate over steps")),
        _figure("Gradient norm", line_chart(norm, "step", "Gradient norm over steps")),
        _figure("Length of train rows", bar_chart(bars, "tokens", "rows", "Histogram of row lengths in tokens")),
    ]
    return _section("Training", f'<div class="charts">{"".join(figures)}</div>')


def _points(log: Iterable[Json], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in log if row.get(key) is not None]


def _figure(title: str, chart: str, legend: Sequence[Line] = ()) -> str:
    if not chart:
        return ""
    names = "".join(f'<span class="key {line.style}">{escape(line.name)}</span>' for line in legend)
    return f"<figure><figcaption>{escape(title)}{names}</figcaption>{chart}</figure>"


def _samples(samples: Sequence[Json]) -> str:
    if not samples:
        return ""
    cards = "".join(_sample(sample) for sample in samples[:MOST_SAMPLES])
    more = len(samples) - MOST_SAMPLES
    note = f'<p class="note">{more} more in samples.jsonl.</p>' if more > 0 else ""
    return _section("Answers side by side", cards + note)


def _sample(sample: Json) -> str:
    told = [("reference", "Reference"), ("base", "Base"), ("tuned", "Tuned"), ("merged", "Merged")]
    answers = "".join(
        f'<div><h4>{words}</h4><pre class="{key}">{_shown(sample[key])}</pre></div>'
        for key, words in told
        if key in sample
    )
    where = f"{sample['dataset']}, row {sample['row']}"
    return (
        f'<article class="sample"><h3>{escape(where)}</h3><pre class="prompt">{_shown(sample["prompt"])}</pre>'
        f'<div class="answers">{answers}</div></article>'
    )


def _shown(text: str) -> str:
    return escape(shortened(text, SAMPLE_CHARACTERS)) or '<span class="note">nothing</span>'


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>" if inside else ""


def _table(facts: Facts) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in facts)
    return f"<table>{rows}</table>"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _score(value: float | None) -> str:
    return "–" if value is None else number(value)


def _merged(value: float | None) -> str:
    return "" if value is None else f'<p class="note">merged: {number(value)}</p>'


def _direction(base: float | None, tuned: float | None, lower_is_better: bool) -> str:
    if base is None or tuned is None or base == tuned:
        return "same"
    return "better" if (tuned < base) is lower_is_better else "worse"
