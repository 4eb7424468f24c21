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


@dataclass(frozen=True)
class View:
    """A Finetune, what was seen beside it, and what to do."""

    finetune: Finetune
    observed: Observed
    decision: Decision


@dataclass(frozen=True)
class Reconciler:
    """Brings Finetunes to what their specs want, one pass at a time.

    What the watches have told is enough for most passes, which cost no request, or the write of a status. Whatever
    deletes or ends something, or comes after something else, is decided from what is read then and there.

    Safe to run twice: child names follow from the Finetune, so a repeated create finds its own child. The status is
    written before a Job is created, and carries the resourceVersion it was decided from: a pass that saw an old object
    creates nothing.
    """

    cluster: Cluster
    mirror: Mirror
    reports: ReportBook
    settings: Settings

    async def reconcile(self, key: Key) -> timedelta | None:
        """Bring one Finetune one step further; returns when to look again although nothing happens.

        Raises ClusterUnreachable and Conflict; the next pass finishes the work.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        view = await self.glance_at(key, now)
        if view is None:
            finetune = await self.mirror.refreshed(key, self.cluster)
            if finetune is None:
                return None  # Deleted. Owner references collect the children.
            if finetune.metadata.deletion_timestamp:
                return await take_leave(finetune, self.cluster, self.settings)
            view = await self.look_closely(finetune, now)
        return await self.carry_out(view, now)

    async def glance_at(self, key: Key, now: datetime) -> View | None:
        """What to do by what the watches have told; None where that is not enough."""
        finetune = self.mirror.finetune(key)
        if finetune is None or finetune.metadata.deletion_timestamp:
            return None
        children = self.mirror.children(finetune)
        if children is None:
            return None
        observed = await self._observe(finetune, children)
        decision = decide(finetune, observed, self.settings, now)
        lost = children.overdue_pods(now - timedelta(seconds=self.settings.node_loss_seconds))
        is_grave = decision.acts or lost or ended(decision.status) != ended(finetune.status)
        is_enough = is_beginning(finetune, decision) or not is_grave
        return View(finetune, observed, decision) if is_enough else None

    async def look_closely(self, finetune: Finetune, now: datetime) -> View:
        """What to do by what is read now."""
        children = await self.cluster.list_children(finetune) if is_watched(finetune) else Observed()
        observed = await self._observe(finetune, children)
        return View(finetune, observed, decide(finetune, observed, self.settings, now))

    async def carry_out(self, view: View, now: datetime) -> timedelta | None:
        """Write the status, then delete, change and create what was decided; returns when to look again."""
        decision, namespace = view.decision, view.finetune.metadata.namespace
        decided = await self._write(view.finetune, decision.status, now)
        await remove_lost_pods(decided, view.observed, self.cluster, self.settings, now)
        for job in decision.stop:
            await self.cluster.delete_job(namespace, job)
        for pod in decision.evict:
            await self.cluster.delete_pod(namespace, pod)
        for job in decision.relabel:
            await self.cluster.label_job(namespace, job, queue_labels(decided.spec.queue))
        wait = None
        if decision.remove:
            await self.cluster.delete_finetune(decided)
        elif decision.start is not None:
            wait = await self._start(decided, decision.start, view.observed, now)
        elif decision.read is not None:
            wait = await self._read(decided, decision.read, now)
        return wait or decision.check_again

    async def _start(self, finetune: Finetune, attempt: Attempt, observed: Observed, now: datetime) -> timedelta | None:
        """Create the objects of an attempt; the status tells of a refusal."""
        if needs_finalizer(finetune):
            finalizers = [*finetune.metadata.finalizers, CLEANUP_FINALIZER]
            finetune = await self.cluster.set_finalizers(finetune, finalizers)
        gpu = gpus.size_of(finetune, observed, self.settings) if attempt.stage is Stage.PREPARE else None
        try:
            for manifest in attempt_manifests(finetune, attempt.stage, attempt.number, self.settings, gpu):
                self.mirror.made(await self.cluster.create(manifest))
        except Refused as refusal:
            log.warning("%s/%s: %s", finetune.metadata.namespace, finetune.metadata.name, refusal)
            told = refused(finetune, attempt, str(refusal), for_good=isinstance(refusal, Invalid), now=now)
            await self._write(finetune, told, now)
            return REFUSAL_WAIT
        return None

    async def _read(self, finetune: Finetune, attempt: Attempt, now: datetime) -> timedelta | None:
        """Create the Job that reads what an attempt came to; the status tells of a refusal."""
        try:
            self.mirror.made(await self.cluster.create(reading_job(finetune, attempt, self.settings)))
        except Refused as refusal:
            await self._write(finetune, in_the_way(finetune.status, attempt.stage, str(refusal)), now)
            return REFUSAL_WAIT
        return None

    async def _write(self, finetune: Finetune, status: FinetuneStatus, now: datetime) -> Finetune:
        """Write the status if it has changed, and tell its turns as Events; returns the Finetune as it is then."""
        if status == finetune.status:
            return finetune
        written = await self.cluster.write_status(finetune, status)
        self.mirror.note(Key(finetune.metadata.namespace, finetune.metadata.name), written)
        metrics.STATUS_WRITES.inc()
        tally.count(finetune.status, status, finetune.spec.trainer)
        await tell(finetune, turns(finetune.status, status), self.cluster, now)
        version = str(written["metadata"]["resourceVersion"])
        metadata = finetune.metadata.model_copy(update={"resource_version": version})
        return finetune.model_copy(update={"status": status, "metadata": metadata})

    async def _observe(self, finetune: Finetune, children: Observed) -> Observed:
        """Everything a decision needs, beside what is known of the children."""
        if not is_watched(finetune):
            return Observed()
        bases = await self.cluster.get_bases(finetune)
        troubled = await self.cluster.troubles.told(children, finetune.metadata.namespace)
        seen = replace(troubled, report=self.reports.newest(finetune.metadata.uid), bases=bases)
        return await self._with_nodes(seen, finetune)

    async def _with_nodes(self, seen: Observed, finetune: Finetune) -> Observed:
        """What was seen, with the labels of the node that trains, or of those that may: they tell which GPU it is."""
        if not finetune.spec.trainer.gpus_per_node:
            return seen
        if node := seen.train_node:
            return replace(seen, node=await self.cluster.nodes.labels_of(node))
        return replace(seen, nodes=await self.cluster.nodes.labels_with(finetune.spec.trainer.node_selector))


def is_beginning(finetune: Finetune, decision: Decision) -> bool:
    """True for the very first start of a run: where its status tells of no stage, there is nothing to be read."""
    only_starts = not replace(decision, start=None).acts
    return only_starts and decision.start == FIRST_ATTEMPT and not finetune.status.stages


def ended(status: FinetuneStatus) -> tuple[bool, set[tuple[Stage, int, bool]]]:
    """Whether the run is over, and which attempts are: those before the newest ones, and some of these."""
    over = (StageState.SUCCEEDED, StageState.FAILED, StageState.STOPPED)
    return is_over(status), {(entry.name, entry.attempt, entry.state in over) for entry in status.stages}


def is_watched(finetune: Finetune) -> bool:
    """False for a Finetune that is over or somebody else's: no child can change it."""
    return is_ours(finetune) and not is_over(finetune.status)
