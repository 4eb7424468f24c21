"""What counts as an answer, and which answers there may be."""

from typing import Any

import pytest
from finetune_api.names import FailureClass
from finetune_api.resource import TrainingSpec
from finetune_trainer.answers import answer_in, answer_pattern, check_labels
from finetune_trainer.errors import RunError
from finetune_trainer.prepared import Reference

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


@pytest.mark.parametrize("pattern", ["(", "a", "(a)(b)"])
def test_a_pattern_without_exactly_one_group_is_refused(pattern: str) -> None:
    with pytest.raises(RunError, match=r"evaluation\.answerPattern") as caught:
        answer_pattern(pattern)
    assert caught.value.reason == "AnswerPatternInvalid"


def references(*completions: str) -> list[Reference]:
    return [
        Reference(dataset="faq", row=row, line=row + 1, prompt="p", completion=text, prompt_ids=[1])
        for row, text in enumerate(completions)
    ]


def training(**evaluation: Any) -> TrainingSpec:
    return TrainingSpec.model_validate(
        {
            "model": {"uri": "s3://models/m"},
            "datasets": [{"name": "faq", "uri": "s3://data/faq.jsonl"}],
            "output": {"uri": "s3://out/x"},
            "evaluation": {"metrics": ["accuracy"], **evaluation},
        }
    )


def test_references_among_the_labels_pass_whatever_blanks_are_around_them() -> None:
    check_labels(references("yes", " no\n"), training(labels=["yes", "no"]))
    check_labels(references("I say: #### yes"), training(labels=["yes", "no"], answerPattern="#### (.+)"))
    check_labels(references("anything"), training())


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (None, "the reference is 'maybe', none of the 2 evaluation.labels (and 1 more rows)"),
        ("#### (.+)", "the reference gives no answer to evaluation.answerPattern"),
    ],
)
def test_a_reference_outside_of_the_labels_is_told_with_dataset_file_and_line(pattern: str | None, words: str) -> None:
    given = training(labels=["yes", "no"], **({"answerPattern": pattern} if pattern else {}))
    with pytest.raises(RunError) as caught:
        check_labels(references("yes", "maybe", "perhaps") if pattern is None else references("yes"), given)
    assert (caught.value.failure_class, caught.value.reason) == (FailureClass.INVALID_DATA, "LabelUnknown")
    line = 2 if pattern is None else 1
    assert caught.value.message.startswith(f"dataset 'faq', s3://data/faq.jsonl, line {line}: {words}")
