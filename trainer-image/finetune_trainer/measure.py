"""A model ready to be trained and measured, and what it says about the evaluation rows."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from finetune_api.resource import Generation, Metric, TrainingSpec
from finetune_api.status import Comparison, EvaluationStatus
from transformers import GenerationConfig, PreTrainedModel

from finetune_trainer.answers import answer_pattern, share_of_matches
from finetune_trainer.attention import PROBE_LENGTHS, packs_cleanly, rows_attended
from finetune_trainer.batch import Batch
from finetune_trainer.compute import Compute
from finetune_trainer.errors import not_finite
from finetune_trainer.evaluate import Likelihood, generate, generation_settings, likelihood
from finetune_trainer.fused_lora import fuse_adapters
from finetune_trainer.loss import LossModel, has_plain_head
from finetune_trainer.model import Model, bare
from finetune_trainer.pack import micro_batches, packed_batch
from finetune_trainer.prepared import Reference, TokenRows


@dataclass(frozen=True)
class Engine:
    """A model, its loss, and how its batches are laid out."""

    model: Model
    inner: PreTrainedModel
    """The transformers model itself."""
    loss: LossModel
    compute: Compute
    packed: bool

    def attending(self) -> AbstractContextManager[None]:
        """Inside, batches of this engine may go through `loss`."""
        return rows_attended(self.inner) if self.packed else nullcontext()

    def batches(self, rows: TokenRows, rows_per_batch: int) -> Iterator[Batch]:
        """All rows, on the device."""
        return (
            batch.to(self.compute.device)
            for batch in micro_batches(rows, range(len(rows)), rows_per_batch, self.packed)
        )

    def likelihood(self, rows: TokenRows, rows_per_batch: int) -> Likelihood:
        """Of the rows' supervised tokens."""
        with self.attending():
            return likelihood(self.loss, self.batches(rows, rows_per_batch))


def make_engine(model: Model, compute: Compute, packing: bool, warn: Callable[[str], None]) -> Engine:
    """Find out what the model can do: fused adapters, and packing where rows leave each other alone."""
    inner = bare(model)
    fuse_adapters(inner)
    probe = packed_batch(_probe_rows(inner.config.get_text_config().vocab_size), range(len(PROBE_LENGTHS)))
    probe = probe.to(compute.device)
    assert probe.layout is not None
    with compute.autocast():
        packed = packing and packs_cleanly(inner, probe.layout, probe.input_ids, probe.position_ids)
        plain_head = has_plain_head(inner, probe.input_ids)
    if packing and not packed:
        warn("hyperparameters.packing: rows of this model would see each other, so they are padded instead; same loss")
    return Engine(model, inner, LossModel(inner, plain_head, compute.autocast), compute, packed)


def _probe_rows(vocabulary: int) -> TokenRows:
    """Rows of some ids, for trying a model out."""
    import numpy as np

    ids = (np.arange(sum(PROBE_LENGTHS)) * 7 + 3) % vocabulary
    offsets = np.concatenate([[0], np.cumsum(PROBE_LENGTHS)])
    return TokenRows(ids.astype(np.int32), np.ones(len(ids), np.bool_), offsets.astype(np.int64))


@dataclass(frozen=True)
class Question:
    """What is measured, the same for base and tuned."""

    training: TrainingSpec
    rows: TokenRows
    references: list[Reference]
    """Those that are generated."""
    settings: GenerationConfig
    decode: Callable[[list[int]], str]
    rows_per_batch: int


@dataclass(frozen=True)
class Findings:
    """What one model says."""

    perplexity: float | None
    exact_match: float | None
    samples: list[str]
    """One text per reference, generated as `spec.generation` says."""


def question(
    training: TrainingSpec,
    rows: TokenRows,
    references: list[Reference],
    end_ids: list[int],
    decode: Callable[[list[int]], str],
    position_limit: int | None,
) -> Question:
    """What to ask; prompts that the model cannot continue (empty, or at its position limit) are not generated."""
    limit = position_limit or 2**31
    usable = [reference for reference in references if 0 < len(reference.prompt_ids) < limit]
    chosen = usable[: training.evaluation.rows or None]
    longest = max((len(reference.prompt_ids) for reference in chosen), default=0)
    room = min(training.generation.max_new_tokens, limit - longest)
    generation = training.generation.model_copy(update={"max_new_tokens": room})
    settings = generation_settings(generation, end_ids, end_ids[0])
    return Question(training, rows, chosen, settings, decode, training.hyperparameters.eval_batch_size)


def ask(engine: Engine, asked: Question) -> Findings:
    """Measure one model."""
    metrics = asked.training.evaluation.metrics
    perplexity = None
    if Metric.PERPLEXITY in metrics and len(asked.rows):
        perplexity = engine.likelihood(asked.rows, asked.rows_per_batch).perplexity
    texts = _generate(engine, asked, asked.settings)
    exact_match = None
    if Metric.EXACT_MATCH in metrics and asked.references:
        greedy = texts if not asked.settings.do_sample else _generate(engine, asked, _greedy(asked))
        pattern = answer_pattern(asked.training.evaluation.answer_pattern)
        wanted = [reference.completion for reference in asked.references]
        exact_match = share_of_matches(greedy, wanted, pattern)
    return Findings(perplexity, exact_match, texts)


def compared(asked: Question, base: Findings, tuned: Findings) -> EvaluationStatus:
    """Both models side by side. Raises RunError (Diverged) where the tuned one's perplexity is no number."""
    if tuned.perplexity is not None and not math.isfinite(tuned.perplexity):
        raise not_finite(f"the perplexity of the tuned model is {tuned.perplexity}")
    return EvaluationStatus(
        rows=len(asked.rows),
        generated_rows=len(asked.references),
        perplexity=_comparison(base.perplexity, tuned.perplexity),
        exact_match=_comparison(base.exact_match, tuned.exact_match),
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


def _comparison(base: float | None, tuned: float | None) -> Comparison | None:
    return None if base is None or tuned is None else Comparison(base=base, tuned=tuned)


def _greedy(asked: Question) -> GenerationConfig:
    greedy = Generation(max_new_tokens=asked.settings.max_new_tokens)
    return generation_settings(greedy, asked.settings.eos_token_id, asked.settings.pad_token_id)


def _generate(engine: Engine, asked: Question, settings: GenerationConfig) -> list[str]:
    prompts = [reference.prompt_ids for reference in asked.references]
    with engine.compute.autocast():
        return generate(engine.inner, prompts, settings, asked.rows_per_batch, asked.decode)
