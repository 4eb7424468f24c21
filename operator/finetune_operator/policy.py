"""What this operator does not allow, or could never make a Job of, although the API server has admitted it. Pure.

A run that has begun keeps what it was allowed: a policy that gets stricter ends nothing.
"""

import re
from collections.abc import Iterator

from finetune_api.addresses import names_metadata
from finetune_api.fields import LABEL_KEY_PATTERN
from finetune_api.names import FailureClass
from finetune_api.placement import Trainer
from finetune_api.reasons import Reason
from finetune_api.resource import Finetune
from finetune_api.status import Failure

from finetune_operator import steps
from finetune_operator.attempts import a_failure
from finetune_operator.settings import Settings
from finetune_operator.steps import Run
from finetune_operator.verdict import Step

LABEL_KEY = re.compile(LABEL_KEY_PATTERN)


def forbidden(run: Run) -> Step | None:
    """Failing with the first thing that is not allowed; None where everything is."""
    if run.status.stages:
        return None
    failure = next(_breaches(run.finetune, run.settings), None)
    return steps.failed(run, failure) if failure else None


def _breaches(finetune: Finetune, settings: Settings) -> Iterator[Failure]:
    spec = finetune.spec
    if spec.model.trust_remote_code and not settings.allow_remote_code:
        yield _refusal(
            Reason.REMOTE_CODE_FORBIDDEN,
            "model.trustRemoteCode is true, but this operator runs no code of models "
            "(settings.allowRemoteCode is false)",
        )
    if not _may_write(spec.output.uri, finetune.metadata.namespace, settings.allowed_output_prefixes):
        yield _refusal(
            Reason.OUTPUT_FORBIDDEN,
            f"output.uri {spec.output.uri} lies below none of the prefixes that this operator allows "
            f"(settings.allowedOutputPrefixes: {', '.join(settings.allowed_output_prefixes)})",
        )
    for field, url in _urls(finetune):
        if names_metadata(url):
            message = f"{field} {url} names the link of the node, or a metadata service"
            yield _refusal(Reason.ADDRESS_FORBIDDEN, message)
    for field, key in _label_keys(spec.trainer):
        if not LABEL_KEY.match(key.lower()):
            message = (
                f"{field}: '{key}' can be no key: that is a name of at most 63 letters, digits, '-', '_' and '.', "
                "where need be below a domain: example.com/name"
            )
            yield _refusal(Reason.JOB_INVALID, message)


def _label_keys(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Field and key of every label and annotation that is the user's: no schema can tell how the key of a map looks."""
    yield from (("trainer.nodeSelector", key) for key in trainer.node_selector)
    yield from (("trainer.podLabels", key) for key in trainer.pod_labels)
    yield from (("trainer.podAnnotations", key) for key in trainer.pod_annotations)


def _may_write(uri: str, namespace: str, prefixes: list[str]) -> bool:
    """Whether the URI is one of the prefixes, or lies below one. Part by part: `team-a` is no prefix of `team-ab`."""
    allowed = [prefix.replace("{namespace}", namespace).rstrip("/") for prefix in prefixes]
    return not allowed or any(f"{uri.rstrip('/')}/".startswith(f"{prefix}/") for prefix in allowed)


def _urls(finetune: Finetune) -> Iterator[tuple[str, str]]:
    """Field and value of every URL that a pod will ask for."""
    spec = finetune.spec
    yield "storage.endpoint", spec.storage.endpoint
    for dataset in spec.datasets:
        yield "datasets[].uri", dataset.uri
    if spec.tracking.mlflow:
        yield "tracking.mlflow.trackingUri", spec.tracking.mlflow.tracking_uri
    if spec.tracking.wandb:
        yield "tracking.wandb.baseUrl", spec.tracking.wandb.base_url


def _refusal(reason: Reason, message: str) -> Failure:
    return a_failure(FailureClass.INVALID_CONFIG, reason, message)
