"""accuracy, macro scores and ROUGE-L against numbers worked out by hand, and against plainer code."""

import pytest
from finetune_trainer.scores import LabelScores, common_length, label_scores, rouge_l, share_equal
from hypothesis import given
from hypothesis import strategies as st

WANTED = ["cat", "cat", "cat", "dog", "dog", "fish"]
GIVEN = ["cat", "dog", "cat", "dog", "bird", "cat"]
"""cat: 2 right of 3 given and 3 wanted; dog: 1 of 2 and 2; fish: 0 of 0 and 1; bird is in no reference."""

WORDS = st.lists(st.sampled_from("abcd"), max_size=30)


def test_the_share_of_equal_answers_counts_no_row_without_one() -> None:
    assert share_equal(WANTED, GIVEN) == pytest.approx(3 / 6)
    assert share_equal([None, "a"], [None, "a"]) == 0.5


def test_macro_scores_are_means_over_the_labels_in_the_references() -> None:
    found = label_scores(WANTED, GIVEN, None)
    assert found.precision == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found.recall == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found.f1 == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_precision_and_recall_are_not_the_same_thing() -> None:
    found = label_scores(["a", "a", "a", "b"], ["a", "b", "b", "b"], None)
    assert found.precision == pytest.approx((1 / 1 + 1 / 3) / 2)
    assert found.recall == pytest.approx((1 / 3 + 1 / 1) / 2)
    assert found.f1 == pytest.approx((2 / 4 + 2 / 4) / 2)


def test_a_given_label_that_no_reference_has_counts_only_where_it_is_answered() -> None:
    assert label_scores(WANTED, WANTED, ["cat", "dog", "fish", "bird"]) == LabelScores(1.0, 1.0, 1.0)
    found = label_scores(WANTED, GIVEN, ["cat", "dog", "fish", "bird"])
    assert found.recall == pytest.approx((2 / 3 + 1 / 2 + 0 + 0) / 4)


def test_without_any_label_the_scores_are_zero() -> None:
    assert label_scores([None], ["a"], None) == LabelScores(0.0, 0.0, 0.0)


def test_perfect_answers_have_perfect_scores() -> None:
    assert label_scores(WANTED, WANTED, None) == LabelScores(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("A-b, c!", "a b c", 1.0),
        ("a b", "a b c d e f", 2 * 2 / 8),
        ("", "a", 0.0),
        ("?!", "?!", 1.0),
        ("?!", "...", 0.0),
        ("東京は雨", "東京は晴れ", 2 * 3 / 9),
        ("Ärger über Öl", "ärger ÜBER öl", 1.0),
    ],
)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(text: str, reference: str, score: float) -> None:
    assert rouge_l(text, reference) == pytest.approx(score)


@given(WORDS, WORDS)
def test_the_common_subsequence_is_as_long_as_the_textbook_says(first: list[str], second: list[str]) -> None:
    assert common_length(first, second) == by_the_textbook(first, second)


def by_the_textbook(first: list[str], second: list[str]) -> int:
    best = [0] * (len(first) + 1)
    for word in second:
        above = best
        best = [0]
        for at, other in enumerate(first):
            best.append(above[at] + 1 if word == other else max(above[at + 1], best[at]))
    return best[-1]
