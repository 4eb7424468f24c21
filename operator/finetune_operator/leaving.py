"""What goes: a Finetune that is deleted with its files, and a pod whose node is lost."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from finetune_api.names import CLEANUP_FINALIZER
from finetune_api.reasons import Reason
from finetune_api.resource import Finetune

from finetune_operator.api_server import Invalid, NamespaceTerminating, Refused
from finetune_operator.cluster import Cluster
from finetune_operator.decide import is_ours
from finetune_operator.deletion import depart, is_refused_for_good, kept
from finetune_operator.errands import cleanup_job
from finetune_operator.observed import Observed
from finetune_operator.settings import Settings
from finetune_operator.turns import event_manifest
from finetune_operator.verdict import Turn

log = logging.getLogger(__name__)


async def take_leave(finetune: Finetune, cluster: Cluster, settings: Settings) -> timedelta | None:
    """One step of going, for a Finetune whose files are to go with it; any other goes by itself."""
    if not is_ours(finetune) or CLEANUP_FINALIZER not in finetune.metadata.finalizers:
        return None
    observed = replace(await cluster.list_children(finetune), cleanup=await cluster.get_cleanup(finetune))
    now = datetime.now(UTC).replace(microsecond=0)
    departure = depart(finetune, observed, settings, now)
    for job in departure.stop:
        await cluster.delete_job(finetune.metadata.namespace, job)
    await remove_lost_pods(finetune, observed, cluster, settings, now)
    farewell = departure.farewell
    if departure.clean:
        try:
            await cluster.create(cleanup_job(finetune, settings))
        except (NamespaceTerminating, Invalid) as never:
            farewell = kept(finetune, str(never))
        except Refused as refusal:
            if not is_refused_for_good(finetune, settings, now):
                raise
            farewell = kept(finetune, str(refusal))
    if farewell is None:
        return departure.check_again
    others = [name for name in finetune.metadata.finalizers if name != CLEANUP_FINALIZER]
    await cluster.set_finalizers(finetune, others)
    # No Event can be recorded in a namespace that goes too.
    log.info("%s/%s is gone: %s", finetune.metadata.namespace, finetune.metadata.name, farewell.message)
    await tell(finetune, [farewell], cluster, now)
    return None


async def remove_lost_pods(
    finetune: Finetune, observed: Observed, cluster: Cluster, settings: Settings, now: datetime
) -> None:
    """Remove pods that should have left long ago, and whose node cannot say that they have.

    One that still runs on a node that is only cut off does no harm: what it writes lies under its own uid, and the
    manifest of the run is written once.
    """
    for pod in observed.overdue_pods(now - timedelta(seconds=settings.node_loss_seconds)):
        if pod.node is None or (trouble := await cluster.nodes.trouble_of(pod.node)) is None:
            continue
        message = f"pod {pod.name} was to leave by {pod.leaves_by:%H:%M:%S} UTC, and its node {pod.node} {trouble}"
        if await cluster.remove_lost_pod(finetune.metadata.namespace, pod, message, now):
            await tell(finetune, [Turn(True, Reason.NODE_LOST, f"{message}: it is removed")], cluster, now)


async def tell(finetune: Finetune, turns: Iterable[Turn], cluster: Cluster, now: datetime) -> None:
    """Record each turn as an Event."""
    for turn in turns:
        await cluster.record_event(event_manifest(finetune, turn, now))
