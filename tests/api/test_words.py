"""Text from anywhere, made fit to be shown."""

import pytest
from finetune_api.status import Failure
from finetune_api.words import as_word, one_line, shortened
from hypothesis import given
from hypothesis import strategies as st


@given(st.text())
def test_one_line_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert one_line(line) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\x1b[31mb", "a [31mb"), (" a\r\n\tb ", "a b"), ("a\u202eb", "a b"), ("größe 🙂", "größe 🙂"), ("\0", "")],
)
def test_control_characters_and_line_ends_become_blanks(text: str, line: str) -> None:
    assert one_line(text) == line


@given(st.text(), st.integers(min_value=1, max_value=50))
def test_what_is_shortened_fits_and_says_so(text: str, length: int) -> None:
    short = shortened(text, length)
    assert len(short) <= length
    assert short == text or short.endswith("…")


@given(st.text(max_size=300))
def test_anything_becomes_a_word_that_a_status_takes(text: str) -> None:
    failure = Failure.model_validate({"class": "Preempted", "reason": as_word(text), "message": ""})
    assert failure.reason.isalnum()


@pytest.mark.parametrize(
    ("text", "word"), [("PreemptionByScheduler", "PreemptionByScheduler"), ("two words!", "twowords"), ("9", "Unknown")]
)
def test_a_word_is_left_as_it_is_and_anything_else_loses_what_is_none(text: str, word: str) -> None:
    assert as_word(text) == word
