"""Comparing answers with references. Pure: loads without torch."""

import re

from finetune_api.names import FailureClass

from finetune_trainer.errors import RunError

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


def share_of_matches(texts: list[str], references: list[str], pattern: re.Pattern[str] | None) -> float:
    """Share of texts that give the reference's answer; a reference without an answer is matched by nothing."""
    wanted = [answer_in(reference, pattern) for reference in references]
    given = [answer_in(text, pattern) for text in texts]
    return sum(w is not None and w == g for w, g in zip(wanted, given, strict=True)) / len(wanted)


def _invalid(what: str) -> RunError:
    message = f"evaluation.answerPattern {what}"
    return RunError(FailureClass.INVALID_CONFIG, "AnswerPatternInvalid", message, "Correct the pattern.")
