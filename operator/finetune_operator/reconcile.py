"""One pass over one Finetune: observe, decide, write the status once, act. The story of the operator."""

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from finetune_api.names import CLEANUP_FINALIZER, Stage, StageState
from finetune_api.resource import Finetune
from finetune_api.status import FinetuneStatus

from finetune_operator import gpus, metrics, tally
from finetune_operator.api_server import Invalid, Refused
from finetune_operator.cluster import REFUSAL_WAIT, Cluster, Key
from finetune_operator.decide import Decision, decide, is_ours, refused
from finetune_operator.deletion import needs_finalizer
from finetune_operator.errands import reading_job
from finetune_operator.leaving import remove_lost_pods, take_leave, tell
from finetune_operator.manifests import attempt_manifests, queue_labels
from finetune_operator.mirror import Mirror
from finetune_operator.observed import Observed
from finetune_operator.reports import ReportBook
from finetune_operator.settings import Settings
from finetune_operator.stages import in_the_way
from finetune_operator.turns import turns
from finetune_operator.verdict import Attempt, is_over

log = logging.getLogger(__name__)

FIRST_ATTEMPT = Attempt(Stage.PREPARE, 1)


async def reconcile(
    key: Key, cluster: Cluster, mirror: Mirror, reports: ReportBook, settings: Settings
) -> timedelta | None:
    """Bring one Finetune one step further; returns when to look again although nothing happens.

    What the watches have told is enough for most passes, which cost no request, or the write of a status. Whatever
    deletes or ends something, or comes after something else, is decided from what is read then and there.

    Safe to run twice: child names follow from the Finetune, so a repeated create finds its own child. The status is
    written before a Job is created, and carries the resourceVersion it was decided from: a pass that saw an old object
    creates nothing. Raises ClusterUnreachable and Conflict; the next pass finishes the work.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    view = await glance_at(key, cluster, mirror, reports, settings, now)
    if view is None:
        finetune = await mirror.refreshed(key, cluster)
        if finetune is None:
            return None  # Deleted. Owner references collect the children.
        if finetune.metadata.deletion_timestamp:
            return await take_leave(finetune, cluster, settings)
        view = await look_closely(finetune, cluster, reports, settings, now)
    return await carry_out(view, cluster, mirror, settings, now)


@dataclass(frozen=True)
class View:
    """A Finetune, what was seen beside it, and what to do."""

    finetune: Finetune
    observed: Observed
    decision: Decision


async def glance_at(
    key: Key, cluster: Cluster, mirror: Mirror, reports: ReportBook, settings: Settings, now: datetime
) -> View | None:
    """What to do by what the watches have told; None where that is not enough."""
    finetune = mirror.finetune(key)
    if finetune is None or finetune.metadata.deletion_timestamp:
        return None
    children = mirror.children(finetune)
    if children is None:
        return None
    observed = await observe(finetune, children, cluster, reports)
    decision = decide(finetune, observed, settings, now)
    lost = children.overdue_pods(now - timedelta(seconds=settings.node_loss_seconds))
    is_grave = decision.acts or lost or ended(decision.status) != ended(finetune.status)
    is_enough = is_beginning(finetune, decision) or not is_grave
    return View(finetune, observed, decision) if is_enough else None


def is_beginning(finetune: Finetune, decision: Decision) -> bool:
    """True for the very first start of a run: where its status tells of no stage, there is nothing to be read."""
    only_starts = replace(decision, start=None).acts is False
    return only_starts and decision.start == FIRST_ATTEMPT and not finetune.status.stages


def ended(status: FinetuneStatus) -> tuple[bool, set[tuple[Stage, int, bool]]]:
    """Whether the run is over, and which attempts are: those before the newest ones, and some of these."""
    over = (StageState.SUCCEEDED, StageState.FAILED, StageState.STOPPED)
    return is_over(status), {(entry.name, entry.attempt, entry.state in over) for entry in status.stages}


async def look_closely(
    finetune: Finetune, cluster: Cluster, reports: ReportBook, settings: Settings, now: datetime
) -> View:
    """What to do by what is read now."""
    children = await cluster.list_children(finetune) if is_watched(finetune) else Observed()
    observed = await observe(finetune, children, cluster, reports)
    return View(finetune, observed, decide(finetune, observed, settings, now))


async def carry_out(
    view: View, cluster: Cluster, mirror: Mirror, settings: Settings, now: datetime
) -> timedelta | None:
    """Write the status, then delete, change and create what was decided; returns when to look again."""
    decision, namespace = view.decision, view.finetune.metadata.namespace
    decided = await write(view.finetune, decision.status, cluster, mirror, now)
    await remove_lost_pods(decided, view.observed, cluster, settings, now)
    for job in decision.stop:
        await cluster.delete_job(namespace, job)
    for job in decision.relabel:
        await cluster.label_job(namespace, job, queue_labels(decided.spec.queue))
    wait = None
    if decision.remove:
        await cluster.delete_finetune(decided)
    elif decision.start is not None:
        wait = await start(decided, decision.start, view.observed, cluster, mirror, settings, now)
    elif decision.read is not None:
        wait = await read(decided, decision.read, cluster, mirror, settings, now)
    return wait or decision.check_again


async def start(
    finetune: Finetune,
    attempt: Attempt,
    observed: Observed,
    cluster: Cluster,
    mirror: Mirror,
    settings: Settings,
    now: datetime,
) -> timedelta | None:
    """Create the objects of an attempt; the status tells of a refusal."""
    if needs_finalizer(finetune):
        finetune = await cluster.set_finalizers(finetune, [*finetune.metadata.finalizers, CLEANUP_FINALIZER])
    gpu = gpus.size_of(finetune, observed, settings) if attempt.stage is Stage.PREPARE else None
    try:
        for manifest in attempt_manifests(finetune, attempt.stage, attempt.number, settings, gpu):
            mirror.made(await cluster.create(manifest))
    except Refused as refusal:
        log.warning("%s/%s: %s", finetune.metadata.namespace, finetune.metadata.name, refusal)
        told = refused(finetune, attempt, str(refusal), for_good=isinstance(refusal, Invalid), now=now)
        await write(finetune, told, cluster, mirror, now)
        return REFUSAL_WAIT
    return None


async def read(
    finetune: Finetune, attempt: Attempt, cluster: Cluster, mirror: Mirror, settings: Settings, now: datetime
) -> timedelta | None:
    """Create the Job that reads what an attempt came to; the status tells of a refusal."""
    try:
        mirror.made(await cluster.create(reading_job(finetune, attempt, settings)))
    except Refused as refusal:
        await write(finetune, in_the_way(finetune.status, attempt.stage, str(refusal)), cluster, mirror, now)
        return REFUSAL_WAIT
    return None


async def write(
    finetune: Finetune, status: FinetuneStatus, cluster: Cluster, mirror: Mirror, now: datetime
) -> Finetune:
    """Write the status if it has changed, and tell its turns as Events; returns the Finetune as it is then."""
    if status == finetune.status:
        return finetune
    written = await cluster.write_status(finetune, status)
    mirror.note(Key(finetune.metadata.namespace, finetune.metadata.name), written)
    metrics.STATUS_WRITES.inc()
    tally.count(finetune.status, status, finetune.spec.trainer)
    await tell(finetune, turns(finetune.status, status), cluster, now)
    metadata = finetune.metadata.model_copy(update={"resource_version": str(written["metadata"]["resourceVersion"])})
    return finetune.model_copy(update={"status": status, "metadata": metadata})


def is_watched(finetune: Finetune) -> bool:
    """False for a Finetune that is over or somebody else's: no child can change it."""
    return is_ours(finetune) and not is_over(finetune.status)


async def observe(finetune: Finetune, children: Observed, cluster: Cluster, reports: ReportBook) -> Observed:
    """Everything a decision needs, beside what is known of the children."""
    if not is_watched(finetune):
        return Observed()
    bases = await cluster.get_bases(finetune)
    troubled = await cluster.troubles.told(children, finetune.metadata.namespace)
    seen = replace(troubled, report=reports.newest(finetune.metadata.uid), bases=bases)
    return await with_nodes(seen, finetune, cluster)


async def with_nodes(seen: Observed, finetune: Finetune, cluster: Cluster) -> Observed:
    """What was seen, with the labels of the node that trains, or of those that may: they tell which GPU it is."""
    if not finetune.spec.trainer.gpus_per_node:
        return seen
    if node := seen.train_node:
        return replace(seen, node=await cluster.nodes.labels_of(node))
    return replace(seen, nodes=await cluster.nodes.labels_with(finetune.spec.trainer.node_selector))
