"""What a run starts from: another Finetune to wait for. Pure."""

from datetime import datetime, timedelta

from finetune_api.names import ConditionType, FailureClass
from finetune_api.output import DeletionPolicy
from finetune_api.reasons import Reason
from finetune_api.resource import Finetune
from finetune_api.status import FinetuneStatus, Resolved

from finetune_operator import steps
from finetune_operator.attempts import a_failure
from finetune_operator.conditions import is_true
from finetune_operator.steps import Run
from finetune_operator.verdict import Step, is_over

BASE_MODEL_GRACE = timedelta(seconds=60)
"""How long `finetuneRef` may name nothing: a GitOps tool applies the two in any order."""


def awaited(run: Run) -> Step | None:
    """Waiting for, or failing with, the Finetune this one builds on; None when there is nothing to wait for."""
    ref = run.finetune.spec.model.finetune_ref
    if ref is None or (run.status.resolved and run.status.resolved.model_uri):
        return None
    base = run.observed.base
    if base is None or _goes_with_its_files(base):
        return _missing(run, ref.name)
    if base.metadata.uid == run.finetune.metadata.uid:
        return _never(run, "model.finetuneRef names itself")
    if _waits_for(base, run.finetune):
        return _never(run, f"model.finetuneRef: Finetune {ref.name} waits for this one, so neither can begin")
    if is_true(base.status, ConditionType.SUCCEEDED) and base.status.artifact:
        return None
    if is_over(base.status):
        return _never(run, f"model.finetuneRef: Finetune {ref.name} failed, so there is nothing to start from")
    return steps.waiting(
        run, Reason.WAITING_FOR_BASE_MODEL, f"waiting for Finetune {ref.name} to succeed", timedelta(seconds=30)
    )


def _goes_with_its_files(base: Finetune) -> bool:
    return bool(base.metadata.deletion_timestamp) and base.spec.output.deletion_policy is DeletionPolicy.DELETE


def _waits_for(base: Finetune, finetune: Finetune) -> bool:
    ref, resolved = base.spec.model.finetune_ref, base.status.resolved
    return bool(ref and ref.name == finetune.metadata.name) and not (resolved and resolved.model_uri)


def _never(run: Run, message: str) -> Step:
    return steps.failed(run, a_failure(FailureClass.INVALID_CONFIG, Reason.BASE_MODEL_FAILED, message))


def _missing(run: Run, name: str) -> Step:
    created = run.finetune.metadata.creation_timestamp
    if created and run.now - datetime.fromisoformat(created) < BASE_MODEL_GRACE:
        return steps.waiting(
            run, Reason.WAITING_FOR_BASE_MODEL, f"waiting for Finetune {name} to be created", timedelta(seconds=10)
        )
    message = f"model.finetuneRef: there is no Finetune {name} in namespace {run.finetune.metadata.namespace}"
    return steps.failed(run, a_failure(FailureClass.INVALID_CONFIG, Reason.BASE_MODEL_NOT_FOUND, message))


def with_model_uri(run: Run) -> FinetuneStatus:
    """The status with the model's URI resolved, once and for every attempt."""
    resolved = run.status.resolved or Resolved()
    if resolved.model_uri:
        return run.status
    base = run.observed.base
    uri = run.finetune.spec.model.uri or (base.status.artifact.uri if base and base.status.artifact else None)
    return run.status.model_copy(update={"resolved": resolved.model_copy(update={"model_uri": uri})})
