"""How a run can stand: its phases, its conditions, and what both mean for whoever waits for it."""

from dataclasses import dataclass
from enum import Enum

from finetune_api.names import ConditionType, Phase
from finetune_api.status import ConditionStatus

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN

VERDICT_TYPES = (
    ConditionType.READY,
    ConditionType.RECONCILING,
    ConditionType.STALLED,
    ConditionType.SUCCEEDED,
    ConditionType.SUSPENDED,
)
"""The conditions that a verdict sets, in the order of `VERDICT_CONDITIONS`."""


class Verdict(Enum):
    """How the run stands after a pass."""

    WORKING = "working"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The run itself is wrong: for good."""
    HELD = "held"
    """A person can cure it without changing the run; it goes on when they do."""
    PAUSED = "paused"
    """Its user has suspended it; it goes on when they say so."""
    CANCELLED = "cancelled"
    """Its user has ended it, for good."""


VERDICT_CONDITIONS = {
    Verdict.WORKING: (FALSE, TRUE, FALSE, UNKNOWN, FALSE),
    Verdict.SUCCEEDED: (TRUE, FALSE, FALSE, TRUE, FALSE),
    Verdict.FAILED: (FALSE, FALSE, TRUE, FALSE, FALSE),
    Verdict.HELD: (FALSE, FALSE, TRUE, UNKNOWN, TRUE),
    Verdict.PAUSED: (FALSE, FALSE, FALSE, UNKNOWN, TRUE),
    Verdict.CANCELLED: (FALSE, FALSE, TRUE, FALSE, FALSE),
}
"""Ready, Reconciling, Stalled, Succeeded and Suspended for each verdict, as kstatus reads them."""

KSTATUS = {
    Verdict.WORKING: "InProgress",
    Verdict.SUCCEEDED: "Current",
    Verdict.FAILED: "Failed",
    Verdict.HELD: "Failed",
    Verdict.PAUSED: "InProgress",
    Verdict.CANCELLED: "Failed",
}
"""What `helm --wait` and Flux take a run for. Source: kstatus, which the tests ask."""

ARGO_HEALTH = {
    Verdict.WORKING: "Progressing",
    Verdict.SUCCEEDED: "Healthy",
    Verdict.FAILED: "Degraded",
    Verdict.HELD: "Degraded",
    Verdict.PAUSED: "Suspended",
    Verdict.CANCELLED: "Degraded",
}
"""What Argo CD shows with the health check of docs/guide/gitops.md."""


@dataclass(frozen=True)
class PhaseFacts:
    """What a phase means."""

    meaning: str
    moved_on_by: str
    verdicts: tuple[Verdict, ...] = (Verdict.WORKING,)


PHASES: dict[Phase, PhaseFacts] = {
    Phase.PENDING: PhaseFacts(
        "A Job is asked for, and its pod has not started (the message has the scheduler's or kubelet's words); or the "
        "run waits for its base model, or for its next attempt.",
        "a node, an image, a volume, a quota; or `pendingDeadlineSeconds`",
    ),
    Phase.QUEUED: PhaseFacts("The Job is suspended: its queue has yet to admit it.", "the queue"),
    Phase.PREPARING: PhaseFacts(
        "Rows are read, split and tokenised on a CPU; the model's config is checked.", "it ends"
    ),
    Phase.TRAINING: PhaseFacts("The train pods run.", "it ends"),
    Phase.PUBLISHING: PhaseFacts(
        "All steps are done; base and tuned model are compared, the artifact is written, loaded again and uploaded.",
        "it ends",
    ),
    Phase.SUCCEEDED: PhaseFacts("The manifest is in S3.", "–", (Verdict.SUCCEEDED,)),
    Phase.FAILED: PhaseFacts("The run itself is wrong.", "another Finetune", (Verdict.FAILED,)),
    Phase.SUSPENDED: PhaseFacts(
        "`spec.suspend` is true, or a limit holds the run that a person can raise.",
        "they do",
        (Verdict.PAUSED, Verdict.HELD),
    ),
    Phase.CANCELLED: PhaseFacts("`spec.cancel` is true.", "–", (Verdict.CANCELLED,)),
}
"""The facts of every phase, in the order in which a run goes through them."""

CONDITIONS: dict[ConditionType, str] = {
    ConditionType.READY: "True once the artifact is published, and never before.",
    ConditionType.RECONCILING: "True while the operator is at it.",
    ConditionType.STALLED: "True where nothing goes on until a person acts: failed, cancelled, or held by a limit.",
    ConditionType.SUCCEEDED: "Unknown until the run is over: `kubectl wait --for=condition=Succeeded` waits for True.",
    ConditionType.SUSPENDED: "True where the run can go on from where it stopped.",
    ConditionType.DATA_VALIDATED: "True once prepare has passed: only then is a GPU asked for.",
    ConditionType.SCHEDULED: "Whether the newest pod has a node.",
    ConditionType.PROGRESSING: "False while a trainer has said nothing for `spec.guards.stallSeconds`.",
    ConditionType.GPU_BUSY: "False while the GPUs have hardly computed for 10 minutes (`spec.guards.idlePercent`).",
    ConditionType.TRAINED: "True once the newest attempt has trained: every step is done, or it has stopped early.",
    ConditionType.EVALUATED: "Whether base and tuned model were compared.",
    ConditionType.ARTIFACT_PUBLISHED: "True once the manifest is written; False where the gate was not passed.",
}
"""What each condition says."""
