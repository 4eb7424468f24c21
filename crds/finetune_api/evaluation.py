"""How a run is judged, and how samples are generated."""

from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.base import Model, cel, rules
from finetune_api.metrics import LOWER_IS_BETTER, READ_ANSWERS, READ_LABELS, Metric


class Gate(Model):
    """What the tuned model must reach to be published."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "has(self.minimum) || has(self.maximum) || self.improves",
                "evaluation.gate needs at least 1 of minimum, maximum and improves",
            ),
            cel(
                f"!has(self.minimum) || !(self.metric in {LOWER_IS_BETTER})",
                f"evaluation.gate.minimum is for a metric of which more is better: for {', '.join(LOWER_IS_BETTER)} "
                "set evaluation.gate.maximum",
            ),
            cel(
                f"!has(self.maximum) || self.metric in {LOWER_IS_BETTER}",
                f"evaluation.gate.maximum is for {', '.join(LOWER_IS_BETTER)}, of which less is better: "
                "set evaluation.gate.minimum",
            ),
        )
    )
    metric: Metric
    """The metric that decides; one of `evaluation.metrics`."""
    minimum: float | None = Field(default=None, ge=0, le=1)
    """Least value of the tuned model, for every metric but perplexity."""
    maximum: float | None = Field(default=None, ge=1, le=1_000_000_000)
    """Largest perplexity of the tuned model."""
    improves: bool = False
    """The tuned model must be better than the base; as good is not enough."""


Label = Annotated[str, Field(min_length=1, max_length=256, json_schema_extra={"pattern": r"^\S(.*\S)?$"})]


class Evaluation(Model):
    """Base against tuned on the same rows: test rows where there are some, else dev rows."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.gate) || self.gate.metric in self.metrics",
                "evaluation.gate.metric must be one of evaluation.metrics",
            ),
            cel(
                f"!has(self.labels) || self.metrics.exists(metric, metric in {READ_LABELS})",
                f"evaluation.labels needs a metric over labels in evaluation.metrics: {', '.join(READ_LABELS)}",
            ),
            cel(
                f"!has(self.answerPattern) || self.metrics.exists(metric, metric in {READ_ANSWERS})",
                f"evaluation.answerPattern needs a metric that reads answers in evaluation.metrics: "
                f"{', '.join(READ_ANSWERS)}",
            ),
        )
    )
    metrics: list[Metric] = Field(
        default=[Metric.PERPLEXITY], max_length=8, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """What is measured; an empty list measures nothing."""
    rows: int = Field(default=64, ge=0, le=1_000_000)
    """Rows that are generated, for samples and every metric but perplexity, from the first on; 0 = all."""
    answer_pattern: str | None = Field(default=None, min_length=1, max_length=1024)
    """Regular expression with one group: the last match's group is the answer; commas between digits are removed."""
    labels: list[Label] | None = Field(
        default=None, min_length=2, max_length=1024, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """The answers that there are, for the metrics over labels; a reference that is none of them is refused by prepare.
    Default: the labels in the references."""
    gate: Gate | None = None
    """Publish only a model that is good enough; else the run fails with class GateFailed."""


class Generation(Model):
    """How samples are generated: greedy, sampled, or by contrastive search. What is measured is always greedy."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.doSample || (self.temperature == 1.0 && self.topP == 1.0)",
                "generation.temperature and topP need generation.doSample true",
            ),
            cel(
                "self.topK == 0 || self.doSample || self.penaltyAlpha > 0.0",
                "generation.topK above 0 needs generation.doSample true or penaltyAlpha above 0",
            ),
            cel(
                "self.penaltyAlpha == 0.0 || self.topK >= 2",
                "generation.penaltyAlpha above 0 needs generation.topK of at least 2: it chooses among so many tokens",
            ),
            cel(
                "self.penaltyAlpha == 0.0 || !self.doSample",
                "generation.penaltyAlpha above 0 (contrastive search) excludes generation.doSample",
            ),
        )
    )
    max_new_tokens: int = Field(default=128, ge=1, le=1_048_576)
    """Most tokens to generate."""
    do_sample: bool = False
    """Sample instead of taking the likeliest token; `hyperparameters.seed` and `evalBatchSize` decide the samples."""
    temperature: float = Field(
        default=1,
        ge=0,
        le=100,
        json_schema_extra=rules(cel("self > 0.0", "generation.temperature must be greater than 0")),
    )
    """Divides the logits; needs `doSample`."""
    top_k: int = Field(default=0, ge=0, le=1_000_000)
    """Choose among the k likeliest tokens; 0 = off; needs `doSample` or `penaltyAlpha`."""
    top_p: float = Field(
        default=1, ge=0, le=1, json_schema_extra=rules(cel("self > 0.0", "generation.topP must be greater than 0"))
    )
    """Sample from the likeliest tokens that together have this probability; needs `doSample`."""
    penalty_alpha: float = Field(
        default=0,
        ge=0,
        le=1,
        json_schema_extra=rules(cel("self < 1.0", "generation.penaltyAlpha must be at least 0 and less than 1")),
    )
    """Above 0: contrastive search, this being the weight of the penalty on repetition; needs `topK` of at least 2. The
    artifact's `generation_config.json` then says greedy. Source: Su et al. 2022, arXiv 2202.06417."""
