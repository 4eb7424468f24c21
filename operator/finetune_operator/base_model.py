"""What a run starts from: another Finetune to wait for. Pure."""

from datetime import datetime, timedelta

from finetune_api.findings import Resolved
from finetune_api.names import ConditionType, FailureClass
from finetune_api.output import DeletionPolicy
from finetune_api.reasons import Reason
from finetune_api.resource import Finetune
from finetune_api.status import FinetuneStatus

from finetune_operator import steps
from finetune_operator.attempts import a_failure
from finetune_operator.conditions import is_true
from finetune_operator.steps import Run
from finetune_operator.verdict import Step, is_over

BASE_MODEL_GRACE = timedelta(seconds=60)
"""How long `finetuneRef` may name nothing: a GitOps tool applies the two in any order."""


MOST_BASES = 16
"""Longest row of Finetunes that wait for one another: each of them looks at all those before it."""


def awaited_name(finetune: Finetune) -> str | None:
    """Name of the Finetune that this one waits for, or will; None once it has its model, or needs none any more."""
    ref, resolved = finetune.spec.model.finetune_ref, finetune.status.resolved
    has_model = bool(resolved and resolved.model_uri)
    return ref.name if ref and not has_model and not is_over(finetune.status) else None


def awaited(run: Run) -> Step | None:
    """Waiting for, or failing with, the Finetune this one builds on; None when there is nothing to wait for."""
    name, base = awaited_name(run.finetune), run.observed.base
    if name is None:
        return None
    if base is None or _goes_with_its_files(base):
        return _missing(run, name)
    if base.metadata.uid == run.finetune.metadata.uid:
        return _never(run, "model.finetuneRef names itself")
    if run.finetune.metadata.uid in (other.metadata.uid for other in run.observed.bases):
        return _never(run, f"model.finetuneRef: Finetune {name} waits for this one, so neither can begin")
    if len(run.observed.bases) == MOST_BASES and awaited_name(run.observed.bases[-1]):
        words = f"more than {MOST_BASES} Finetunes would have to succeed before this one; create it when fewer are left"
        return _never(run, f"model.finetuneRef: {words}")
    if is_true(base.status, ConditionType.SUCCEEDED) and base.status.artifact:
        return None
    if is_over(base.status):
        return _never(run, f"model.finetuneRef: Finetune {name} failed, so there is nothing to start from")
    return steps.waiting(
        run, Reason.WAITING_FOR_BASE_MODEL, f"waiting for Finetune {name} to succeed", timedelta(seconds=30)
    )


def _goes_with_its_files(base: Finetune) -> bool:
    return bool(base.metadata.deletion_timestamp) and base.spec.output.deletion_policy is DeletionPolicy.DELETE


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
