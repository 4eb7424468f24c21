"""A model ready to be trained and measured, and what it says about the evaluation rows."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from finetune_api.evaluation import Evaluation, Generation
from finetune_api.findings import Comparison, EvaluationStatus
from finetune_api.metrics import METRICS, Metric
from finetune_api.resource import TrainingSpec
from transformers import GenerationConfig, PreTrainedModel

from finetune_trainer.answers import answer_in, answer_pattern
from finetune_trainer.attention import rows_attended
from finetune_trainer.batch import Batch, Packing
from finetune_trainer.compute import Compute
from finetune_trainer.errors import not_finite
from finetune_trainer.evaluate import Likelihood, likelihood
from finetune_trainer.fused_lora import fuse_adapters
from finetune_trainer.generate import Stops, generate, generation_settings
from finetune_trainer.long_rope import rope_border
from finetune_trainer.loss import LossModel, has_plain_head
from finetune_trainer.model import Model, bare
from finetune_trainer.pack import micro_batches
from finetune_trainer.parallel import ALONE, Team
from finetune_trainer.prepared import Reference, TokenRows, continuable
from finetune_trainer.probe import UNPACKED, find_packing
from finetune_trainer.scores import label_scores, rouge_l, share_equal


@dataclass(frozen=True)
class Engine:
    """A model, its loss, and how its batches are laid out."""

    model: Model
    inner: PreTrainedModel
    """The transformers model itself."""
    loss: LossModel
    compute: Compute
    packing: Packing
    team: Team = ALONE
    """Who measures together."""

    @property
    def packed(self) -> bool:
        """Whether batches are packed, not padded."""
        return self.packing is not Packing.NONE

    def attending(self) -> AbstractContextManager[None]:
        """Inside, batches of this engine may go through `loss`."""
        return rows_attended(self.inner, self.packing) if self.packed else nullcontext()

    def batches(self, rows: TokenRows, rows_per_batch: int) -> Iterator[Batch]:
        """This rank's share of all rows, on the device."""
        rank, size, border = self.team.rank, self.team.size, rope_border(self.inner.config)
        chosen = range(len(rows))
        shared = micro_batches(rows, chosen, rows_per_batch, self.packed, border=border, rank=rank, size=size)
        return (batch.to(self.compute.device) for batch in shared)

    def likelihood(self, rows: TokenRows, rows_per_batch: int, between: Callable[[], None] | None = None) -> Likelihood:
        """Of the supervised tokens of all rows; the same on every rank. `between` comes before each batch, on each."""
        with self.attending():
            mine = likelihood(self.loss, self.batches(rows, rows_per_batch), between)
        total = self.team.sum(torch.tensor(mine.total, dtype=torch.float64))
        return Likelihood(float(total), int(rows.supervised.sum()))


def make_engine(
    model: Model, compute: Compute, packing: bool, warn: Callable[[str], None], team: Team = ALONE
) -> Engine:
    """Find out what the model can do: fused adapters, and packing where rows leave each other alone."""
    inner = bare(model)
    fuse_adapters(inner)
    way = find_packing(inner, compute) if packing else Packing.NONE
    if packing and way is Packing.NONE:
        warn(UNPACKED)
    ids = torch.arange(HEAD_PROBE_TOKENS, device=compute.device)[None] % inner.config.get_text_config().vocab_size
    with compute.autocast():
        plain_head = has_plain_head(inner, ids)
    return Engine(model, inner, LossModel(inner, plain_head, compute.autocast), compute, way, team)


HEAD_PROBE_TOKENS = 12
"""Ids that tell whether a model changes its logits."""


@dataclass(frozen=True)
class Question:
    """What is measured, the same for base and tuned."""

    training: TrainingSpec
    rows: TokenRows
    references: list[Reference]
    """Those that are generated."""
    stops: Stops
    decode: Callable[[list[int]], str]

    @property
    def settings(self) -> GenerationConfig:
        """How the artifact generates, in transformers' words."""
        return generation_settings(self.training.generation, self.stops)


@dataclass(frozen=True)
class Findings:
    """What one model says."""

    values: dict[Metric, float]
    """What could be measured of what is asked for."""
    samples: list[str]
    """One text per reference, generated as `spec.generation` says."""


def question(
    training: TrainingSpec,
    rows: TokenRows,
    references: Sequence[Reference],
    stops: Stops,
    decode: Callable[[list[int]], str],
) -> Question:
    """What to ask: all rows, and the first `evaluation.rows` of the prompts that can be continued."""
    usable = continuable(references, stops.position_limit)
    chosen = list(islice(usable, training.evaluation.rows or None))
    return Question(training, rows, chosen, stops, decode)


def ask(engine: Engine, asked: Question) -> Findings:
    """Measure one model."""
    generation, values = asked.training.generation, {}
    metrics = set(asked.training.evaluation.metrics)
    if Metric.PERPLEXITY in metrics and len(asked.rows):
        rows_per_batch = asked.training.hyperparameters.eval_batch_size
        values[Metric.PERPLEXITY] = engine.likelihood(asked.rows, rows_per_batch).perplexity
    samples = _generate(engine, asked, generation)
    if metrics - {Metric.PERPLEXITY} and asked.references:
        plain = Generation(max_new_tokens=generation.max_new_tokens)
        answers = samples if generation == plain else _generate(engine, asked, plain)
        values |= scores(asked.training.evaluation, answers, [each.completion for each in asked.references])
    return Findings({metric: values[metric] for metric in METRICS if metric in metrics & values.keys()}, samples)


def scores(evaluation: Evaluation, texts: list[str], references: list[str]) -> dict[Metric, float]:
    """Every metric that compares texts with references, of at least 1 row."""
    pattern = answer_pattern(evaluation.answer_pattern)
    given, wanted = [[answer_in(text, pattern) for text in side] for side in (texts, references)]
    right, by_label = share_equal(wanted, given), label_scores(wanted, given, evaluation.labels)
    return {
        Metric.EXACT_MATCH: right,
        Metric.ACCURACY: right,
        Metric.MACRO_PRECISION: by_label.precision,
        Metric.MACRO_RECALL: by_label.recall,
        Metric.MACRO_F1: by_label.f1,
        Metric.ROUGE_L: fmean(map(rouge_l, texts, references)),
    }


def compared(asked: Question, base: Findings, tuned: Findings) -> EvaluationStatus:
    """Both models side by side. Raises RunError (Diverged) where the tuned one's perplexity is no number."""
    perplexity = tuned.values.get(Metric.PERPLEXITY, 0)
    if not math.isfinite(perplexity):
        raise not_finite(f"the perplexity of the tuned model is {perplexity}")
    found = {str(metric): Comparison(base=base.values[metric], tuned=value) for metric, value in tuned.values.items()}
    numbers = {"rows": len(asked.rows), "generatedRows": len(asked.references)}
    return EvaluationStatus.model_validate({**numbers, **found})


def beside(evaluation: EvaluationStatus, merged: EvaluationStatus) -> EvaluationStatus:
    """What the merged model scored, beside base and adapter."""
    scores = {str(metric): found.tuned for metric, found in merged.measured().items()}
    whole = evaluation.to_json()
    return EvaluationStatus.model_validate(
        whole | {metric: whole[metric] | {"merged": score} for metric, score in scores.items()}
    )


def sample_rows(asked: Question, base: Findings, tuned: Findings) -> list[dict[str, Any]]:
    """`samples.jsonl`: prompt, reference and both answers."""
    return [
        {
            "dataset": reference.dataset,
            "row": reference.row,
            "prompt": reference.prompt,
            "reference": reference.completion,
            "base": before,
            "tuned": after,
        }
        for reference, before, after in zip(asked.references, base.samples, tuned.samples, strict=True)
    ]


def _generate(engine: Engine, asked: Question, generation: Generation) -> list[str]:
    """One text per reference, on every rank; each rank generates its share."""
    team, training = engine.team, asked.training.hyperparameters
    prompts = [reference.prompt_ids for reference in asked.references[team.rank :: team.size]]
    with engine.compute.autocast():
        mine = generate(
            engine.inner, prompts, generation, asked.stops, training.eval_batch_size, training.seed, asked.decode
        )
    texts = team.from_all(mine)
    return [texts[at % team.size][at // team.size] for at in range(len(asked.references))]
