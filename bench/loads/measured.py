"""How much of everything a load takes, and the line of the table that it comes to."""

from dataclasses import dataclass
from statistics import quantiles


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    burst: int = 1000
    rounds: int = 5
    lives: int = 200
    idle: int = 1000
    idle_seconds: int = 70
    present: int = 5000
    running: int = 500
    reporting_seconds: int = 60
    others: int = 100
    changes_a_second: int = 50
    soak_seconds: int = 120


QUICK = Size(100, 1, 20, 100, 65, 500, 50, 20, 30, 50, 30)


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    load: str
    bar: str
    measured: str
    holds: bool


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return quantiles(values, n=100)[98] if len(values) > 1 else values[0]
