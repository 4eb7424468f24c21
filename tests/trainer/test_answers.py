"""exactMatch: what counts as the same answer."""

import pytest
from finetune_trainer.answers import answer_in, answer_pattern, share_of_matches
from finetune_trainer.errors import RunError

GSM8K = answer_pattern(r"####\s*(.+)")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 2\n#### 1,080", "1080"),
        ("#### 1080 ", "1080"),
        ("#### 1\n#### 2", "2"),
        ("#### a, b", "a, b"),
        ("no answer", None),
    ],
)
def test_the_last_matchs_group_is_the_answer_without_commas_between_digits(text: str, answer: str | None) -> None:
    assert answer_in(text, GSM8K) == answer


def test_without_a_pattern_the_whole_trimmed_text_counts() -> None:
    assert answer_in(" 1,080\n", None) == "1,080"


def test_the_share_counts_rows_whose_answers_agree() -> None:
    assert share_of_matches(["#### 1080", "#### 7", "?"], ["#### 1,080", "#### 8", "?"], GSM8K) == pytest.approx(1 / 3)


@pytest.mark.parametrize("pattern", ["(", "a", "(a)(b)"])
def test_a_pattern_without_exactly_one_group_is_refused(pattern: str) -> None:
    with pytest.raises(RunError, match=r"evaluation\.answerPattern") as caught:
        answer_pattern(pattern)
    assert caught.value.reason == "AnswerPatternInvalid"
