"""What is measured of base and tuned model: one table for all who measure, compare or show it."""

from dataclasses import dataclass
from enum import StrEnum


class Metric(StrEnum):
    """What is measured; each is a field of `status.evaluation`. All but perplexity compare greedy answers."""

    PERPLEXITY = "perplexity"
    EXACT_MATCH = "exactMatch"
    ACCURACY = "accuracy"
    MACRO_PRECISION = "macroPrecision"
    MACRO_RECALL = "macroRecall"
    MACRO_F1 = "macroF1"
    ROUGE_L = "rougeL"


@dataclass(frozen=True)
class MetricFacts:
    """How to read a metric."""

    words: str
    """What people call it."""
    lower_is_better: bool = False
    """Whether a smaller number is a better model; such a metric is at least 1, any other lies in 0..1."""
    reads_answers: bool = True
    """Whether answers and references are compared, after `evaluation.answerPattern` where it is given."""
    reads_labels: bool = False
    """Whether each answer is one of a set of labels."""


METRICS: dict[Metric, MetricFacts] = {
    Metric.PERPLEXITY: MetricFacts("perplexity", lower_is_better=True, reads_answers=False),
    Metric.EXACT_MATCH: MetricFacts("exact match"),
    Metric.ACCURACY: MetricFacts("accuracy", reads_labels=True),
    Metric.MACRO_PRECISION: MetricFacts("macro precision", reads_labels=True),
    Metric.MACRO_RECALL: MetricFacts("macro recall", reads_labels=True),
    Metric.MACRO_F1: MetricFacts("macro F1", reads_labels=True),
    Metric.ROUGE_L: MetricFacts("ROUGE-L", reads_answers=False),
}
"""The facts of every metric, in the order in which they are shown."""

LOWER_IS_BETTER = [str(metric) for metric, facts in METRICS.items() if facts.lower_is_better]
READ_ANSWERS = [str(metric) for metric, facts in METRICS.items() if facts.reads_answers]
READ_LABELS = [str(metric) for metric, facts in METRICS.items() if facts.reads_labels]
