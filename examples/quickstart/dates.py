"""Dates as people write them, with their ISO form: the quickstart's data, and text that mentions dates.

Everything follows from a seed. Each row has a date of its own, so a row that is held out is a date never trained on.
Only forms with one reading are here: the month is a word, the year has four digits.
"""

import json
import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path

FIRST, LAST = date(1900, 1, 1), date(2049, 12, 31)
"""Bounds of the dates, both included."""

PLACES = ("Lisbon", "Oslo", "Lima", "Cairo", "Quito", "Turin", "Kyoto", "Accra", "Basel", "Havana")
PEOPLE = ("Ada", "Grace", "Alan", "Emmy", "Kurt", "Sofia", "Niels", "Rosa", "Ivan", "Mary")
THINGS = ("bridge", "letter", "school", "ship", "museum", "treaty", "garden", "station", "clock", "library")

SENTENCES = (
    "The {thing} in {place} was opened on {date}.",
    "{person} left {place} on {date} and came back on {other}.",
    "Diary of {person}, {date}\nWe saw the {thing}. End of {date}.",
    "{date}: the {thing} is closed. Open again after {date}.",
)
"""Text with dates in any form, ISO 8601 among them; a date that comes twice has one form."""

REMARKS = (
    "{person} came to {place} on {date}. It was {month}, the year {year}.",
    "{place}, {date}: day {day} of {month}, year {year}.",
    "In {year}, on day {day} of {month}: the {thing} opens on {date}.",
    "{date}. The {thing} is of {year}, {month}, day {day}.",
)
"""Text that takes a date apart, never one in ISO 8601: the task itself is in no sentence."""


def ordinal(day: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st and so on."""
    ending = "th" if 10 <= day % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


FORMS: tuple[Callable[[date], str], ...] = (
    lambda d: f"{d.day} {d:%B %Y}",
    lambda d: f"{d.day} {d:%b %Y}",
    lambda d: f"{d:%B} {d.day}, {d.year}",
    lambda d: f"{d:%b} {d.day}, {d.year}",
    lambda d: f"{d:%b}. {d.day}, {d.year}",
    lambda d: f"{d:%B} {ordinal(d.day)}, {d.year}",
    lambda d: f"{ordinal(d.day)} of {d:%B %Y}",
    lambda d: f"the {ordinal(d.day)} of {d:%B}, {d.year}",
    lambda d: f"{ordinal(d.day)} {d:%b %Y}",
    lambda d: f"{d:%A}, {d.day} {d:%B %Y}",
    lambda d: f"{d:%a} {d.day} {d:%b %Y}",
    lambda d: f"{d:%A}, {d:%B} {d.day}, {d.year}",
    lambda d: f"{d:%A} the {ordinal(d.day)} of {d:%B %Y}",
    lambda d: f"{d.day}-{d:%b-%Y}",
)
"""How people write a date. The names are English: strftime's, in the locale that Python starts with."""


def random_date(chance: random.Random) -> date:
    """Any day between FIRST and LAST."""
    return FIRST + timedelta(days=chance.randint(0, (LAST - FIRST).days))


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """`count` rows of question (a date as people write it) and answer (ISO 8601), each with another date.

    Raises ValueError where there are not so many days.
    """
    chance = random.Random(f"rows {seed}")
    days = chance.sample(range((LAST - FIRST).days + 1), count)
    found = (FIRST + timedelta(days=day) for day in days)
    return [{"question": chance.choice(FORMS)(day), "answer": day.isoformat()} for day in found]


def sentences(seed: int = 0) -> Iterator[str]:
    """Endless sentences that hold dates in all forms."""
    chance = random.Random(f"sentences {seed}")
    forms = (*FORMS, date.isoformat)
    while True:
        form, day = chance.choice(forms), random_date(chance)
        templates = SENTENCES if form is date.isoformat else (*SENTENCES, *REMARKS)
        yield chance.choice(templates).format(
            date=form(day),
            other=form(random_date(chance)),
            day=day.day,
            month=f"{day:%B}",
            year=day.year,
            thing=chance.choice(THINGS),
            place=chance.choice(PLACES),
            person=chance.choice(PEOPLE),
        )


def write_rows(path: Path, count: int, seed: int = 0) -> None:
    """The rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count, seed)), encoding="utf-8")
