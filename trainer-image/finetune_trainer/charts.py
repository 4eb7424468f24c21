"""Small charts as inline SVG: lines and bars, drawn by hand. No script, no font, no request; colours are CSS classes.

Sizes are those of the view box; the page scales it. Every point carries a `<title>`, which browsers show on hover.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 66, 24, 14, 44
TICKS = 5
MOST_POINTS = 400
"""Points of one line; a longer one is thinned evenly, first and last kept."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    style: str
    """CSS class that gives it its colour."""
    points: Sequence[Point]


@dataclass(frozen=True)
class Bar:
    """One bar, from one x to another."""

    start: float
    end: float
    height: float


@dataclass(frozen=True)
class Scale:
    """Values to places on the page."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def line_chart(lines: Sequence[Line], x_name: str, label: str) -> str:
    """Curves over one x axis; empty where no line has a point."""
    lines = [Line(line.name, line.style, thinned(line.points)) for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ticks = nice_ticks(min(ys), max(ys))
    across = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    drawn = "".join(_line(line, across, up, x_name) for line in lines)
    x_ticks = [tick for tick in nice_ticks(min(xs), max(xs), 7) if min(xs) <= tick <= max(xs)]
    return _svg(_grid(ticks, up) + _x_axis(x_ticks, across, x_name) + drawn, label)


def bar_chart(bars: Sequence[Bar], x_name: str, y_name: str, label: str) -> str:
    """Bars side by side; empty where there are none."""
    if not bars:
        return ""
    ticks = nice_ticks(0, max(bar.height for bar in bars))
    across = Scale(bars[0].start, bars[-1].end, LEFT, WIDTH - RIGHT)
    up = Scale(0, ticks[-1], HEIGHT - BOTTOM, TOP)
    drawn = "".join(_bar(bar, across, up, x_name, y_name) for bar in bars)
    x_ticks = [tick for tick in nice_ticks(bars[0].start, bars[-1].end, 7) if bars[0].start <= tick <= bars[-1].end]
    return _svg(_grid(ticks, up) + _x_axis(x_ticks, across, x_name) + drawn, label)


def nice_ticks(low: float, high: float, most: int = TICKS) -> list[float]:
    """Round numbers that enclose both: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> Sequence[Point]:
    """At most `most` of the points."""
    if len(points) <= most:
        return points
    return [points[round(number * (len(points) - 1) / (most - 1))] for number in range(most)]


def number(value: float) -> str:
    """A number for people: at most 4 digits that matter, thousands apart, small ones as 1.5e-4."""
    if abs(value) >= 1000 and float(value).is_integer():
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-3:
        digits, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.4g}"


def _line(line: Line, across: Scale, up: Scale, x_name: str) -> str:
    places = " ".join(f"{across(x)},{up(y)}" for x, y in line.points)
    dots = "".join(
        f'<circle cx="{across(x)}" cy="{up(y)}" r="{2.5 if len(line.points) < 40 else 1.2}">'
        f"<title>{escape(line.name)} {number(y)} at {escape(x_name)} {number(x)}</title></circle>"
        for x, y in line.points
    )
    return f'<g class="{line.style}"><polyline points="{places}"/>{dots}</g>'


def _bar(bar: Bar, across: Scale, up: Scale, x_name: str, y_name: str) -> str:
    left, right, top = across(bar.start), across(bar.end), up(bar.height)
    title = f"{number(bar.height)} {escape(y_name)} of {number(bar.start)} to {number(bar.end)} {escape(x_name)}"
    return (
        f'<rect class="bar" x="{left + 0.5:.1f}" y="{top}" width="{max(right - left - 1, 1):.1f}" '
        f'height="{round(up(0) - top, 1)}"><title>{title}</title></rect>'
    )


def _grid(ticks: Iterable[float], up: Scale) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick)}" y2="{up(tick)}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{up(tick) + 4}" text-anchor="end">{number(tick)}</text>'
        for tick in ticks
    )


def _x_axis(ticks: Iterable[float], across: Scale, name: str) -> str:
    marks = "".join(
        f'<text class="tick" x="{across(tick)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{number(tick)}</text>'
        for tick in ticks
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'{marks}<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(name)}</text>'


def _svg(inside: str, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{inside}</svg>'
