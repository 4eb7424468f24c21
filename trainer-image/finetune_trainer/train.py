"""The train stage: load, measure, fit, measure again, publish. It reads straight down."""

import gc
import json
import shutil
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from finetune_api.names import Activity, Stage
from finetune_api.output import ArtifactForm
from finetune_api.run import RunResult, RunSpec
from finetune_api.status import EvaluationStatus
from finetune_api.training import MethodType, Quantization
from peft import PeftModel

from finetune_trainer.artifact import (
    MERGED_FOLDER,
    SAMPLES_FILE,
    Papers,
    write_adapter,
    write_model,
    write_papers,
    write_tokenizer,
)
from finetune_trainer.card import lock_file, model_card, public_name, run_facts
from finetune_trainer.checkpoint import Checkpoints, Origin
from finetune_trainer.compute import Compute, compute_for
from finetune_trainer.curve import Curve
from finetune_trainer.data_report import length_histogram
from finetune_trainer.errors import RunError
from finetune_trainer.fetch import ModelFiles, fetch_model
from finetune_trainer.fit import fit
from finetune_trainer.flops import operations_per_token, tokens_until, with_flops
from finetune_trainer.gate import gate_failure
from finetune_trainer.generate import Stops
from finetune_trainer.loop import Settings
from finetune_trainer.measure import (
    Engine,
    Findings,
    Question,
    ask,
    beside,
    compared,
    make_engine,
    question,
    sample_rows,
)
from finetune_trainer.model import adapted_base, bare, end_ids, load_model, merged_model, round_weights, stored_dtype
from finetune_trainer.model_config import position_limit, read_config
from finetune_trainer.parallel import ALONE, Team
from finetune_trainer.parts import whole_copy
from finetune_trainer.planning import Plan, Planner
from finetune_trainer.prepared import Prepared, read_prepared
from finetune_trainer.publish import WRITER_LENGTH, artifact_folder, existing_result, publish, upload
from finetune_trainer.reload import (
    MERGE_TOLERANCES,
    PROBE_ROWS,
    ReloadCheck,
    check_in_fresh_process,
    check_probe,
    write_probe,
)
from finetune_trainer.report import Reporter
from finetune_trainer.report_page import Run, report_page
from finetune_trainer.shards import shard
from finetune_trainer.store import Store, uri_of
from finetune_trainer.termination import StopSignal
from finetune_trainer.vocabulary import load_tokenizer

MODEL_FORM = "model"
"""What a full run publishes."""


@dataclass(frozen=True)
class Setup:
    """Everything a run is made of but the model itself."""

    spec: RunSpec
    store: Store
    writer: str
    """Who writes: what is uploaded lies under its first characters."""
    scratch: Path
    prepared: Prepared
    files: ModelFiles
    compute: Compute
    question: Question
    team: Team

    @property
    def settings(self) -> Settings:
        """The hyperparameters in force."""
        return Settings.of(self.prepared.index.effective_hyperparameters)

    @property
    def trusted(self) -> bool:
        """Whether the model's own code may run."""
        return self.spec.training.model.trust_remote_code

    @property
    def packing(self) -> bool:
        """Whether rows are to be packed: prepare has tried it out."""
        return self.prepared.index.effective_hyperparameters.packing is not False

    @property
    def form(self) -> str:
        """What is published: `adapter`, `merged`, `both` or `model`."""
        if self.spec.training.method.type is MethodType.FULL:
            return MODEL_FORM
        return (self.spec.training.output.artifact or ArtifactForm.ADAPTER).value


def train(
    spec: RunSpec,
    store: Store,
    writer: str,
    report: Reporter,
    stop: StopSignal | None = None,
    team: Team = ALONE,
) -> RunResult:
    """Train the run whose prepared data lies below `store`, and publish it.

    An attempt that finds the run published returns that result. Of a team the first rank alone publishes, and has the
    result. Raises RunError for whatever stands in the way.
    """
    published = team.from_first(lambda: existing_result(store, spec))
    if published is not None:
        report.say("this run is published already")
        return published
    setup = set_up(spec, store, writer, team)
    engine = _engine(setup, report)
    planner = Planner(spec, engine, setup.prepared.train, setup.settings)
    plan = team.from_first(lambda: planner.plan(report.log.table))
    report.plan(plan.status)

    report.start(Activity.EVALUATING)
    asked = setup.question
    before = ask(engine, asked)
    report.start(Activity.TRAINING)
    curve = _fit(setup, engine, plan, report, stop)

    if setup.form == MODEL_FORM and team.size > 1:
        engine = _whole_engine(setup, engine, report)
    if not (team.is_first or setup.form in (ArtifactForm.ADAPTER, ArtifactForm.BOTH)):
        return RunResult(stage=Stage.TRAIN)
    if setup.form == ArtifactForm.MERGED:
        adapter = _write_adapter(setup, engine, _new_folder(setup.scratch / "adapter"))
        del engine
        _free_memory()
        engine = _merged_engine(setup, adapter, report)
    elif setup.form == MODEL_FORM:
        # Before it is measured: what is measured is what is stored.
        round_weights(engine.inner, stored_dtype(setup.files.model.folder, setup.trusted))
    report.start(Activity.EVALUATING)
    after = ask(engine, asked)
    if not team.is_first:
        return RunResult(stage=Stage.TRAIN)
    evaluation = _evaluation(setup, before, after)

    report.start(Activity.PUBLISHING)
    folder, packed, samples = _new_folder(setup.scratch / "artifact"), engine.packed, sample_rows(asked, before, after)
    checks, forms = [_write_weights(setup, engine, folder)], [evaluation]
    if setup.form == ArtifactForm.BOTH:
        del engine
        _free_memory()
        engine = _merged_engine(setup, folder, report)
        merged = ask(engine, asked)
        forms.append(_evaluation(setup, before, merged))
        evaluation = beside(*forms)
        samples = [row | {"merged": text} for row, text in zip(samples, merged.samples, strict=True)]
        checks.append(_write_weights(setup, engine, _new_folder(folder / MERGED_FOLDER)))
    del engine
    _free_memory()
    for check in checks:
        check_in_fresh_process(check, setup.scratch)
    write_papers(folder, _papers(setup, packed, plan, curve, evaluation, samples))
    result = _result(setup, plan, curve, evaluation, report)
    missed = [failure for form in forms if (failure := gate_failure(spec.training.evaluation.gate, form))]
    if missed:
        return _kept_unpublished(setup, folder, missed[0], result)
    return publish(store, spec, folder, writer, setup.form, result, report.log.warn)


def set_up(spec: RunSpec, store: Store, writer: str, team: Team) -> Setup:
    """Read what prepare left, and fetch the weights, once for all ranks of a node."""
    scratch = Path(spec.scratch_directory)
    threads = spec.threads and max(1, spec.threads // spec.processes)
    compute = compute_for(spec.gpus, threads, team.rank % team.per_node)
    prepared = read_prepared(store, scratch / f"rank-{team.rank}")
    files = team.from_first_of_node(lambda: fetch_model(spec, scratch, weights=True))
    folder = files.model.folder
    tokenizer, _ = load_tokenizer(folder, spec.training.model.trust_remote_code)
    rows, references = prepared.evaluated()

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    limit = position_limit(read_config(folder, files.model.uri))
    stops = Stops(end_ids(folder, prepared.index.end_ids), limit)
    asked = question(spec.training, rows, references, stops, decode)
    return Setup(spec, store, writer, scratch, prepared, files, compute, asked, team)


def _engine(setup: Setup, report: Reporter) -> Engine:
    training = setup.spec.training
    seed, folder = training.hyperparameters.seed, setup.files.model.folder
    model = load_model(folder, training.method, seed, setup.compute, setup.files.adapter, setup.trusted)
    engine = make_engine(model, setup.compute, setup.packing, report.log.warn, setup.team)
    resolved = setup.prepared.index.resolved
    report.say(
        f"training {resolved.trainable_parameters} of {resolved.parameters} parameters on {setup.compute.device} in "
        f"{str(setup.compute.dtype).removeprefix('torch.')}, {'packed' if engine.packed else 'padded'}"
    )
    return engine


def _fit(setup: Setup, engine: Engine, plan: Plan, report: Reporter, stop: StopSignal | None) -> Curve:
    settings = replace(setup.settings, tokens_per_batch=plan.status.micro_batch_tokens)
    rows_per_batch = setup.spec.training.hyperparameters.eval_batch_size

    def validate() -> float:
        return engine.likelihood(setup.prepared.dev, rows_per_batch).loss

    train, device = setup.prepared.train, setup.compute.device
    if setup.form == MODEL_FORM and setup.team.size > 1:
        shard(engine.loss, setup.compute, setup.team.size)
    checkpoints = _checkpoints(setup, plan, engine.packed, report)
    with engine.attending(), plan.working(engine):
        return fit(engine.loss, train, settings, engine.packed, device, validate, report, checkpoints, stop, setup.team)


def _checkpoints(setup: Setup, plan: Plan, packed: bool, report: Reporter) -> Checkpoints:
    """What is learned is decided by settings, method, weights and data; how it is computed, by the facts."""
    index, spec = setup.prepared.index, setup.spec
    decides = [
        index.effective_hyperparameters.to_json(),
        spec.training.method.to_json(),
        setup.files.model.revision,
        index.files,
    ]
    run = sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    facts = _facts(setup, packed) | {"microBatchTokens": plan.status.micro_batch_tokens}
    origin = Origin(setup.writer[:WRITER_LENGTH], spec.attempt, run, facts)
    keep = index.effective_hyperparameters.save_total_limit or 1
    scratch = setup.scratch / f"rank-{setup.team.rank}"
    return Checkpoints(setup.store, scratch, origin, keep, report.checkpoint, report.log, setup.team.is_first)


def _facts(setup: Setup, packed: bool) -> dict[str, Any]:
    """How it is computed: what may change the last bits of a result, and nothing else."""
    compute = setup.compute
    return {
        "device": str(compute.device),
        "processes": setup.team.size,
        "dtype": str(compute.dtype).removeprefix("torch."),
        "processor": compute.processor,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "packed": packed,
    }


def _whole_engine(setup: Setup, engine: Engine, report: Reporter) -> Engine:
    """The trained weights in one piece, on the first rank: whoever measures and publishes is alone from here on."""
    weights = {name: whole_copy(weight, setup.team.is_first) for name, weight in engine.inner.named_parameters()}
    if not setup.team.is_first:
        return engine
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


def _evaluation(setup: Setup, before: Findings, after: Findings) -> EvaluationStatus:
    samples = f"{artifact_folder(setup.spec.attempt, setup.writer)}/{SAMPLES_FILE}"
    return compared(setup.question, before, after).model_copy(update={"samples_uri": uri_of(setup.store, samples)})


def _papers(
    setup: Setup,
    packed: bool,
    plan: Plan,
    curve: Curve,
    evaluation: EvaluationStatus,
    samples: list[dict[str, Any]],
) -> Papers:
    index = setup.prepared.index
    return Papers(
        lock=lock_file(setup.spec, setup.files, index, setup.form, _facts(setup, packed)),
        card=model_card(setup.spec, setup.files, index, setup.form, evaluation),
        evaluation=evaluation,
        samples=samples,
        training_log=_training_log(setup, curve),
        plan=plan.to_json(),
        page=_page(setup, curve, evaluation, samples),
    )


def _training_log(setup: Setup, curve: Curve) -> list[dict[str, Any]]:
    """The curve with the operations that each row's steps took in all."""
    settings, found = setup.settings, setup.prepared.index.resolved
    steps = [row["step"] for row in curve.rows]
    tokens = tokens_until(setup.prepared.train.lengths, settings.effective_batch, settings.seed, steps)
    return with_flops(curve.rows, tokens, operations_per_token(found.parameters or 0, found.trainable_parameters or 0))


def _page(setup: Setup, curve: Curve, evaluation: EvaluationStatus, samples: list[dict[str, Any]]) -> str:
    index, spec = setup.prepared.index, setup.spec
    run = Run(
        name=spec.identity.name,
        description=spec.training.description,
        facts=run_facts(spec, setup.files, index, setup.form),
        settings=index.effective_hyperparameters.to_json(),
        evaluation=evaluation,
        log=curve.rows,
        lengths=length_histogram(setup.prepared.train.lengths),
        samples=samples,
    )
    return report_page(run)


def _result(setup: Setup, plan: Plan, curve: Curve, evaluation: EvaluationStatus, report: Reporter) -> RunResult:
    index = setup.prepared.index
    return RunResult(
        stage=Stage.TRAIN,
        effective_hyperparameters=index.effective_hyperparameters,
        resolved=index.resolved,
        plan=plan.status,
        progress=curve.progress,
        metrics=curve.metrics,
        evaluation=evaluation,
        **report.reached,
    )


def _kept_unpublished(setup: Setup, folder: Path, missed: RunError, result: RunResult) -> RunResult:
    """What did not pass the gate is uploaded for people to look at; without a manifest it is nobody's artifact."""
    where = uri_of(setup.store, upload(setup.store, setup.spec, folder, setup.writer))
    told = RunError(missed.failure_class, missed.reason, f"{missed.message}; unpublished, it lies at {where}")
    # What prepare has told already would only fill the pod's short message.
    return result.model_copy(update={"failure": told.failure(), "resolved": None, "effective_hyperparameters": None})


def _new_folder(folder: Path) -> Path:
    """An empty folder: what an earlier run left in the scratch space is no part of this one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
