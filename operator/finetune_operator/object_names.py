"""Names of what is made for a Finetune: they follow from it, so that a second create finds the first."""

from finetune_api.names import Stage
from finetune_api.resource import Finetune


def run_name(finetune: Finetune) -> str:
    """What the names of all its objects begin with: its own, and enough of its uid to tell it from a namesake."""
    return f"{finetune.metadata.name}-{finetune.metadata.uid[:8]}"


def child_name(finetune: Finetune, stage: Stage, attempt: int) -> str:
    """Name of an attempt's Job and ConfigMap."""
    return f"{run_name(finetune)}-{stage}-{attempt}"


def gang_name(finetune: Finetune) -> str:
    """Name of the Service that gives the pods of a gang their DNS names: one for all attempts."""
    return run_name(finetune)
