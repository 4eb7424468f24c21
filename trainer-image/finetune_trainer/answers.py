"""The answer that a text gives, and the answers that there may be. Pure: loads without torch."""

import re
from collections.abc import Iterable

from finetune_api.names import FailureClass
from finetune_api.resource import TrainingSpec

from finetune_trainer.data_files import public_uri
from finetune_trainer.errors import RunError, quoted
from finetune_trainer.prepared import Reference

DIGIT_COMMA = re.compile(r"(?<=\d),(?=\d)")


def answer_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """`evaluation.answerPattern`, compiled. Raises RunError (InvalidConfig) unless it has exactly one group."""
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise _invalid(f"'{pattern}' is not a regular expression: {error}") from error
    if compiled.groups != 1:
        raise _invalid(f"'{pattern}' has {compiled.groups} groups, but needs exactly 1: the answer")
    return compiled


def answer_in(text: str, pattern: re.Pattern[str] | None) -> str | None:
    """The answer that a text gives: all of it trimmed, or the last match's group; None where nothing matches.

    Commas between digits are removed where a pattern is given: `#### 1,080` answers 1080.
    """
    if pattern is None:
        return text.strip()
    matches = list(pattern.finditer(text))
    if not matches or matches[-1].group(1) is None:
        return None
    return DIGIT_COMMA.sub("", matches[-1].group(1).strip())


def check_labels(references: Iterable[Reference], training: TrainingSpec) -> None:
    """Raise RunError (InvalidData, LabelUnknown) for a reference that is none of `evaluation.labels`."""
    labels, pattern = training.evaluation.labels, answer_pattern(training.evaluation.answer_pattern)
    if labels is None:
        return
    known = set(labels)
    unknown = [reference for reference in references if answer_in(reference.completion, pattern) not in known]
    if unknown:
        raise _label_unknown(unknown, training, answer_in(unknown[0].completion, pattern))


def _label_unknown(unknown: list[Reference], training: TrainingSpec, answer: str | None) -> RunError:
    first, more = unknown[0], f" (and {len(unknown) - 1} more rows)" if len(unknown) > 1 else ""
    uri = next(public_uri(dataset.uri) for dataset in training.datasets if dataset.name == first.dataset)
    what = "gives no answer to evaluation.answerPattern" if answer is None else f"is {quoted([answer])}"
    message = (
        f"dataset '{first.dataset}', {uri}, line {first.line}: the reference {what}, none of the "
        f"{len(training.evaluation.labels or [])} evaluation.labels{more}"
    )
    remedy = "Correct the row, or add its label to evaluation.labels."
    return RunError(FailureClass.INVALID_DATA, "LabelUnknown", message, remedy)


def _invalid(what: str) -> RunError:
    message = f"evaluation.answerPattern {what}"
    return RunError(FailureClass.INVALID_CONFIG, "AnswerPatternInvalid", message, "Correct the pattern.")
