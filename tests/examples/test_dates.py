"""The quickstart's rows: right answers, no date twice, the task not in the text that the base model learns."""

import calendar
import re
from datetime import date
from itertools import islice

import pytest

from examples.quickstart import dates

MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_abbr) if number}


def read_back(text: str) -> date:
    """The date in a text, found without the code that wrote it."""
    year = re.search(r"\d{4}", text)
    day = re.search(r"(?<!\d)\d{1,2}(?!\d)", text)
    words = [word[:3].lower() for word in re.findall(r"[A-Za-z]+", text)]
    month = next(MONTHS[word] for word in words if word in MONTHS)
    assert year is not None
    assert day is not None
    return date(int(year[0]), month, int(day[0]))


def test_every_answer_is_the_date_of_its_question() -> None:
    for row in dates.rows(3000):
        assert read_back(row["question"]).isoformat() == row["answer"]


def test_no_date_comes_twice_so_that_a_held_out_row_is_unseen() -> None:
    rows = dates.rows(4000)
    assert len({row["answer"] for row in rows}) == 4000
    assert len({row["question"] for row in rows}) == 4000


def test_a_seed_makes_the_same_rows_again_and_another_seed_makes_others() -> None:
    assert dates.rows(50, seed=1) == dates.rows(50, seed=1)
    assert dates.rows(50, seed=1) != dates.rows(50, seed=2)


@pytest.mark.parametrize(
    ("day", "words"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (13, "13th"),
                       (21, "21st"), (22, "22nd"), (23, "23rd"), (30, "30th"), (31, "31st")]
)  # fmt: skip
def test_a_day_has_the_ending_that_people_give_it(day: int, words: str) -> None:
    assert dates.ordinal(day) == words


def test_no_sentence_of_the_base_model_holds_a_date_in_two_forms() -> None:
    found = list(islice(dates.sentences(), 5000))
    iso = {text for text in found if re.search(r"\d{4}-\d\d-\d\d", text)}
    month = re.compile(rf"\b({'|'.join(MONTHS)})[a-z]*\b", re.IGNORECASE)
    words = {text for text in found if month.search(re.sub("Mary|Ivan", "", text))}
    assert iso
    assert words
    assert not iso & words
