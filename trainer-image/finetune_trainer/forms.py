"""What a run publishes: an adapter, the base with the adapter merged into it, both, or a whole model.

What is measured is what is published: the trained model takes its form first. Each form is read from disk by a fresh
process, which has to find the same logits.
"""

import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_api.findings import EvaluationStatus
from finetune_api.output import ArtifactForm
from finetune_api.training import Quantization
from peft import PeftModel

from finetune_trainer.artifact import MERGED_FOLDER, SAMPLES_FILE, write_adapter, write_model, write_tokenizer
from finetune_trainer.card import public_name
from finetune_trainer.measure import Engine, Findings, ask, beside, compared, make_engine, sample_rows
from finetune_trainer.model import adapted_base, bare, load_model, merged_model, round_weights, stored_dtype
from finetune_trainer.parts import whole_copy
from finetune_trainer.publish import artifact_folder
from finetune_trainer.reload import MERGE_TOLERANCES, PROBE_ROWS, check_probe, write_probe
from finetune_trainer.reload_check import ReloadCheck, check_in_fresh_process
from finetune_trainer.report import Reporter
from finetune_trainer.run_setup import MODEL_FORM, Setup
from finetune_trainer.store import uri_of


class Held:
    """The one engine in memory: it is let go of before the next is made, since a device need not have room for two."""

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine

    @property
    def engine(self) -> Engine:
        """The engine. Nobody else keeps it."""
        assert self._engine is not None, "the engine was let go of"
        return self._engine

    def replace(self, make: Callable[[], Engine]) -> None:
        """Hold another one."""
        self.drop()
        self._engine = make()

    def drop(self) -> None:
        """Give its memory back."""
        self._engine = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Written:
    """The artifact's weights on disk, and what they are worth."""

    folder: Path
    scores: tuple[EvaluationStatus, ...]
    """Of each form that is published."""
    samples: list[dict[str, Any]]
    """A row for each prompt: what the base and each form answered."""
    packed: bool
    """Whether the engine's batches were packed."""

    @property
    def evaluation(self) -> EvaluationStatus:
        """All forms side by side."""
        return self.scores[0] if len(self.scores) == 1 else beside(*self.scores)


def take_form(setup: Setup, held: Held, report: Reporter) -> bool:
    """Give the trained model the form in which it is measured and published.

    An adapter is measured by all ranks, a whole model by the first alone: False where nothing is left to do.
    """
    if setup.form == MODEL_FORM:
        return _take_whole(setup, held, report)
    if setup.form != ArtifactForm.MERGED:
        return True
    if setup.team.is_first:
        adapter = _write_adapter(setup, held.engine, _new_folder(setup.scratch / "adapter"))
        held.replace(lambda: _merged_engine(setup, adapter, report))
    return setup.team.is_first


def write_artifact(setup: Setup, held: Held, base: Findings, tuned: Findings, report: Reporter) -> Written:
    """Write weights and tokenizer, and have them read again. Afterwards no engine is held.

    Raises RunError where what was read answers otherwise than what was trained.
    """
    folder, packed = _new_folder(setup.scratch / "artifact"), held.engine.packed
    scores, samples = [_scores(setup, base, tuned)], sample_rows(setup.question, base, tuned)
    checks = [_write_weights(setup, held.engine, folder)]
    if setup.form == ArtifactForm.BOTH:
        held.replace(lambda: _merged_engine(setup, folder, report))
        merged = ask(held.engine, setup.question)
        scores.append(_scores(setup, base, merged))
        samples = [row | {"merged": text} for row, text in zip(samples, merged.samples, strict=True)]
        checks.append(_write_weights(setup, held.engine, _new_folder(folder / MERGED_FOLDER)))
    held.drop()
    for check in checks:
        check_in_fresh_process(check, setup.scratch)
    return Written(folder, tuple(scores), samples, packed)


def _take_whole(setup: Setup, held: Held, report: Reporter) -> bool:
    """The trained weights in one piece on the first rank, rounded as they are stored."""
    if setup.team.size > 1:
        parts = held.engine.inner.named_parameters()
        weights = {name: whole_copy(weight, setup.team.is_first) for name, weight in parts}
        if not setup.team.is_first:
            return False
        held.replace(lambda: _engine_of(setup, weights, report))
    round_weights(held.engine.inner, stored_dtype(setup.files.model.folder, setup.trusted))
    return True


def _engine_of(setup: Setup, weights: dict[str, torch.Tensor], report: Reporter) -> Engine:
    folder, method = setup.files.model.folder, setup.spec.training.method
    model = load_model(folder, method, 0, setup.compute, setup.files.adapter, setup.trusted)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])
    return make_engine(model, setup.compute, setup.packing, report.log.warn)


def _merged_engine(setup: Setup, adapter: Path, report: Reporter) -> Engine:
    """The adapter merged into the unquantised base, once both were seen to say the same."""
    folder, compute, probe = setup.files.model.folder, setup.compute, setup.scratch / "unmerged.safetensors"
    dtype = stored_dtype(folder, setup.trusted)
    adapted = adapted_base(folder, adapter, compute, setup.trusted)
    write_probe(bare(adapted), _probed_rows(setup), compute, probe)
    merged = merged_model(adapted, dtype)
    difference = check_probe(merged, probe, compute, MERGE_TOLERANCES[dtype], "merged")
    report.say("the adapter is merged", largest_difference=difference)
    return make_engine(merged, compute, setup.packing, report.log.warn)


def _probed_rows(setup: Setup) -> list[list[int]]:
    rows = setup.prepared.train
    return [rows.row(number)[0].tolist() for number in range(min(PROBE_ROWS, len(rows)))]


def _write_weights(setup: Setup, engine: Engine, folder: Path) -> ReloadCheck:
    """Probe the model, write its weights and tokenizer, and say what a fresh process has to find."""
    base, probe = setup.files.model.folder, setup.scratch / f"{folder.name}.safetensors"
    weights = str(engine.inner.dtype).removeprefix("torch.")
    is_adapter = isinstance(engine.model, PeftModel)
    write_probe(engine.inner, _probed_rows(setup), setup.compute, probe)
    if is_adapter:
        _write_adapter(setup, engine, folder)
    else:
        write_model(engine.inner, folder, stored_dtype(base, setup.trusted), setup.question.settings)
    write_tokenizer(folder, base, setup.question.settings)
    return ReloadCheck(
        artifact=str(folder),
        base=str(base) if is_adapter else None,
        quantization=setup.spec.training.method.quantization if is_adapter else Quantization.NONE,
        weights=weights,
        trusted=setup.trusted,
        gpus=setup.spec.gpus,
        threads=setup.spec.threads,
        probe=str(probe),
    )


def _write_adapter(setup: Setup, engine: Engine, folder: Path) -> Path:
    assert isinstance(engine.model, PeftModel)
    base = setup.files.model
    revision = base.revision if base.uri.startswith("hf://") else None
    write_adapter(engine.model, folder, public_name(base), revision)
    return folder


def _scores(setup: Setup, base: Findings, tuned: Findings) -> EvaluationStatus:
    samples = f"{artifact_folder(setup.spec.attempt, setup.writer)}/{SAMPLES_FILE}"
    return compared(setup.question, base, tuned).model_copy(update={"samples_uri": uri_of(setup.store, samples)})


def _new_folder(folder: Path) -> Path:
    """An empty folder: what an earlier run left in the scratch space is no part of this one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
