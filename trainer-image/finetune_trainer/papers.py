"""What lies in the artifact beside the weights: lock file, model card, evaluation, samples, log, plan, report page."""

from typing import Any

from finetune_trainer.artifact import Papers
from finetune_trainer.card import lock_file, model_card, run_facts
from finetune_trainer.curve import Curve
from finetune_trainer.data_report import length_histogram
from finetune_trainer.flops import operations_per_token, tokens_until, with_flops
from finetune_trainer.forms import Written
from finetune_trainer.planning import Plan
from finetune_trainer.report_page import Run, report_page
from finetune_trainer.run_setup import Setup


def papers(setup: Setup, plan: Plan, curve: Curve, written: Written) -> Papers:
    """All of them, of a run whose weights are written."""
    index = setup.prepared.index
    return Papers(
        lock=lock_file(setup.spec, setup.files, index, setup.form, setup.facts(written.packed)),
        card=model_card(setup.spec, setup.files, index, setup.form, written.evaluation),
        evaluation=written.evaluation,
        samples=written.samples,
        training_log=_training_log(setup, curve),
        plan=plan.to_json(),
        page=_page(setup, curve, written),
    )


def _training_log(setup: Setup, curve: Curve) -> list[dict[str, Any]]:
    """The curve with the operations that each row's steps took in all."""
    settings, found = setup.settings, setup.prepared.index.resolved
    steps = [row["step"] for row in curve.rows]
    tokens = tokens_until(setup.prepared.train.lengths, settings.effective_batch, settings.seed, steps)
    return with_flops(curve.rows, tokens, operations_per_token(found.parameters or 0, found.trainable_parameters or 0))


def _page(setup: Setup, curve: Curve, written: Written) -> str:
    index, spec = setup.prepared.index, setup.spec
    run = Run(
        name=spec.identity.name,
        description=spec.training.description,
        facts=run_facts(spec, setup.files, index, setup.form),
        settings=index.effective_hyperparameters.to_json(),
        evaluation=written.evaluation,
        log=curve.rows,
        lengths=length_histogram(setup.prepared.train.lengths),
        samples=written.samples,
    )
    return report_page(run)
