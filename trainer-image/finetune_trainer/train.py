"""The train stage: load, measure, fit, measure again, publish. It reads straight down."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256

from finetune_api.names import Activity, Stage
from finetune_api.run import RunResult, RunSpec

from finetune_trainer.artifact import write_papers
from finetune_trainer.base_findings import base_findings
from finetune_trainer.checkpoint import Checkpoints, Origin, newest_step
from finetune_trainer.curve import Curve
from finetune_trainer.errors import RunError
from finetune_trainer.fetch import ModelFiles
from finetune_trainer.fit import fit
from finetune_trainer.forms import Held, Written, take_form, write_artifact
from finetune_trainer.gate import gate_failure
from finetune_trainer.measure import Engine, ask
from finetune_trainer.papers import papers
from finetune_trainer.parallel import ALONE, Team
from finetune_trainer.planning import Plan, Planner
from finetune_trainer.publish import WRITER_LENGTH, existing_result, publish, upload
from finetune_trainer.report import Reporter
from finetune_trainer.run_setup import MODEL_FORM, Setup, load_engine, set_up
from finetune_trainer.shards import shard
from finetune_trainer.store import Store, uri_of
from finetune_trainer.termination import StopSignal
from finetune_trainer.utilization import Utilization, read_gpus


def train(
    spec: RunSpec,
    store: Store,
    writer: str,
    report: Reporter,
    stop: StopSignal | None = None,
    team: Team = ALONE,
    fetched: Callable[[], ModelFiles | None] | None = None,
) -> RunResult:
    """Train the run whose prepared data lies below `store`, and publish it; `fetched` gives its model, if anything.

    An attempt that finds the run published returns that result. Of a team the first rank alone publishes, and has the
    result. Raises RunError for whatever stands in the way.
    """
    published = team.from_first(lambda: existing_result(store, spec))
    if published is not None:
        report.say("this run is published already")
        return published
    setup = set_up(spec, store, writer, team, fetched)
    held = Held(load_engine(setup, report))
    plan = _plan(setup, held.engine, report)

    report.start(Activity.EVALUATING)
    base = base_findings(setup, held.engine.packed, lambda: ask(held.engine, setup.question))
    report.start(Activity.TRAINING)
    curve = _fit(setup, held.engine, plan, report, stop)
    if not take_form(setup, held, report):
        return RunResult(stage=Stage.TRAIN)
    report.start(Activity.EVALUATING)
    tuned = ask(held.engine, setup.question)
    if not team.is_first:
        return RunResult(stage=Stage.TRAIN)

    report.start(Activity.PUBLISHING)
    written = write_artifact(setup, held, base, tuned, report)
    write_papers(written.folder, papers(setup, plan, curve, written))
    return _gated(setup, written, _result(setup, plan, curve, written, report), report)


def _plan(setup: Setup, engine: Engine, report: Reporter) -> Plan:
    done = partial(newest_step, setup.store)
    planner = Planner(setup.spec, engine, setup.prepared.train, setup.settings, done)
    plan = setup.team.from_first(lambda: planner.plan(report.log.table))
    report.plan(plan.status)
    return plan


def _fit(setup: Setup, engine: Engine, plan: Plan, report: Reporter, stop: StopSignal | None) -> Curve:
    settings = replace(setup.settings, tokens_per_batch=plan.status.micro_batch_tokens)
    rows_per_batch = setup.spec.training.hyperparameters.eval_batch_size

    def validate(between: Callable[[], None]) -> float:
        return engine.likelihood(setup.prepared.dev, rows_per_batch, between).loss

    train, device = setup.prepared.train, setup.compute.device
    if setup.form == MODEL_FORM and setup.team.size > 1:
        shard(engine.loss, setup.compute, setup.team.size)
    checkpoints = _checkpoints(setup, plan, engine.packed, report)
    with engine.attending(), plan.working(engine), _gpus_watched(setup, report):
        return fit(engine.loss, train, settings, engine.packed, device, validate, report, checkpoints, stop, setup.team)


@contextmanager
def _gpus_watched(setup: Setup, report: Reporter) -> Iterator[None]:
    """Inside, the first process tells how busy the GPUs of its pod are, where their driver tells."""
    if not setup.spec.gpus or not setup.team.is_first:
        yield
        return
    utilization = Utilization(partial(read_gpus, setup.spec.gpus))
    report.watch(lambda: utilization.percent)
    with utilization.sampled():
        yield


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
    facts = setup.facts(packed) | {
        "microBatchTokens": plan.status.micro_batch_tokens,
        "compiled": plan.status.compiled,
    }
    origin = Origin(setup.writer[:WRITER_LENGTH], spec.attempt, run, facts)
    keep = index.effective_hyperparameters.save_total_limit or 1
    scratch = setup.scratch / f"rank-{setup.team.rank}"
    return Checkpoints(setup.store, scratch, origin, keep, report.checkpoint, report.log, setup.team.is_first)


def _result(setup: Setup, plan: Plan, curve: Curve, written: Written, report: Reporter) -> RunResult:
    index = setup.prepared.index
    return RunResult(
        stage=Stage.TRAIN,
        effective_hyperparameters=index.effective_hyperparameters,
        resolved=index.resolved,
        plan=plan.status,
        progress=curve.progress,
        metrics=curve.metrics,
        evaluation=written.evaluation,
        **report.reached,
    )


def _gated(setup: Setup, written: Written, result: RunResult, report: Reporter) -> RunResult:
    """Publish what passes the gate in each of its forms."""
    gate = setup.spec.training.evaluation.gate
    missed = next((failure for scores in written.scores if (failure := gate_failure(gate, scores))), None)
    if missed is not None:
        return _kept_unpublished(setup, written, missed, result)
    return publish(setup.store, setup.spec, written.folder, setup.writer, setup.form, result, report.log.warn)


def _kept_unpublished(setup: Setup, written: Written, missed: RunError, result: RunResult) -> RunResult:
    """What did not pass the gate is uploaded for people to look at; without a manifest it is nobody's artifact."""
    where = uri_of(setup.store, upload(setup.store, setup.spec, written.folder, setup.writer))
    told = RunError(missed.failure_class, missed.reason, f"{missed.message}; unpublished, it lies at {where}")
    # What prepare has told already would only fill the pod's short message.
    return result.model_copy(update={"failure": told.failure(), "resolved": None, "effective_hyperparameters": None})
