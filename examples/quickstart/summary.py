"""What the quickstart shows at the end: status, before and after, files, and what to try next. Pure text."""

from collections.abc import Iterable, Sequence
from typing import Any

from finetune_api.metrics import METRICS

Json = dict[str, Any]
Table = Sequence[Sequence[str]]

CELL = 40
"""Longest text of a table cell."""


def table(rows: Table) -> str:
    """Rows of cells in columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  " + "  ".join("─" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def conditions(status: Json) -> str:
    """Type, status, reason and message of each condition."""
    found = status.get("conditions", [])
    cells = [[item["type"], item["status"], item["reason"], cut(item.get("message", ""), 70)] for item in found]
    return table([["condition", "status", "reason", "message"], *cells])


def numbers(status: Json) -> str:
    """Each metric before and after."""
    evaluation = status.get("evaluation") or {}
    rows = [
        [facts.words, f"{evaluation[metric]['base']:.4g}", f"{evaluation[metric]['tuned']:.4g}"]
        for metric, facts in METRICS.items()
        if evaluation.get(metric)
    ]
    return table([["metric", "before", "after"], *rows])


def answers(samples: Iterable[Json]) -> str:
    """What both models answer to the same prompts."""
    rows = [[cut(row[name]) for name in ("prompt", "base", "tuned", "reference")] for row in samples]
    return table([["prompt", "before", "after", "wanted"], *rows])


def files(sizes: dict[str, int]) -> str:
    """Names and sizes."""
    return table([["file", "bytes"], *([name, f"{size:>11,}"] for name, size in sorted(sizes.items()))])


def cut(text: str, most: int = CELL) -> str:
    """The text on one line, and not too long."""
    shown = "".join(letter if letter.isprintable() else "⏎" if letter == "\n" else "·" for letter in text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"
