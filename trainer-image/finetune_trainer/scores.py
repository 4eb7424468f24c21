"""How well answers agree with their references. Pure: loads without torch."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean

Answer = str | None
"""None where a text gives no answer."""

UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Characters of scripts written without blanks: kana and Han."""

WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
"""A word of ROUGE-L: a run of letters and digits, or one character of a script without blanks."""


def share_equal(wanted: Sequence[Answer], given: Sequence[Answer]) -> float:
    """Share of rows whose answer is the one that is wanted; where none is wanted, nothing is right."""
    return fmean(w is not None and w == g for w, g in zip(wanted, given, strict=True))


@dataclass(frozen=True)
class LabelScores:
    """Means over labels, each label counting the same however many rows it has."""

    precision: float
    """Right answers with the label / answers with it."""
    recall: float
    """Right answers with the label / references with it."""
    f1: float
    """Harmonic mean of both, label by label."""


def label_scores(wanted: Sequence[Answer], given: Sequence[Answer], labels: Collection[str] | None) -> LabelScores:
    """Over `labels`, else over those that are wanted.

    A share of nothing is 0: a label that is never answered has precision 0. A label that is neither wanted nor given
    says nothing and does not count; scikit-learn would count it as 0.
    """
    in_references, in_answers = Counter(wanted), Counter(given)
    right = Counter(w for w, g in zip(wanted, given, strict=True) if w == g)
    known = [label for label in labels or in_references if label is not None]
    seen = [label for label in known if in_references[label] or in_answers[label]]

    def mean(*totals: Counter[Answer]) -> float:
        """Of right answers / the mean of the totals, over the labels."""
        sums = {label: sum(total[label] for total in totals) for label in seen}
        shares = (len(totals) * right[label] / sums[label] for label in seen if sums[label])
        return sum(shares) / len(seen) if seen else 0.0

    return LabelScores(precision=mean(in_answers), recall=mean(in_references), f1=mean(in_answers, in_references))


def rouge_l(text: str, reference: str) -> float:
    """F measure of the longest common subsequence of words, in lower case and without stemming: 0..1.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3, with beta 1.
    """
    given, wanted = WORD.findall(text.lower()), WORD.findall(reference.lower())
    if not given or not wanted:
        return float(text.strip() == reference.strip())
    return 2 * common_length(given, wanted) / (len(given) + len(wanted))


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, in len(second) operations on integers of len(first) bits.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[str, int] = {}
    for at, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << at
    everywhere = (1 << len(first)) - 1
    open_places = everywhere
    for word in second:
        matched = open_places & places.get(word, 0)
        open_places = (open_places + matched | open_places - matched) & everywhere
    return len(first) - open_places.bit_count()
