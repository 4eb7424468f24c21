"""Errands beside the stages: read from the store what a stage came to, and remove what a run wrote. Without torch."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from finetune_api.names import MANIFEST_FILE, FailureClass, Stage
from finetune_api.run import CleanupResult, RunResult, RunRoot

from finetune_trainer.errors import RunError
from finetune_trainer.prepared import INDEX_FILE, prepared_key, read_index
from finetune_trainer.publish import existing_result
from finetune_trainer.store import NotFoundError, Store, infrastructure, uri_of

PARALLEL_REMOVALS = 8
"""Objects that are removed at the same time, one call each: not every server removes several at once."""

ROUNDS = 5
"""How often the store is listed again after everything in it was removed, before somebody else must be writing."""


def lost_result(root: RunRoot, store: Store, stage: Stage) -> RunResult:
    """What the stage left in the store. Raises RunError (Infrastructure) where it left no result."""
    result = existing_result(store, root) if stage is Stage.TRAIN else _prepared(store)
    if result is None:
        file = MANIFEST_FILE if stage is Stage.TRAIN else prepared_key(INDEX_FILE)
        message = f"{stage} is complete, but its result is lost: there is no usable {uri_of(store, file)}"
        raise RunError(FailureClass.INFRASTRUCTURE, "ResultLost", message)
    return result


def _prepared(store: Store) -> RunResult | None:
    index = read_index(store)
    return index.result() if index else None


def cleanup(root: RunRoot, store: Store, say: Callable[[str], None]) -> CleanupResult:
    """Remove everything below the run's root, and abort uploads that were never finished.

    Raises RunError: InvalidConfig where the root may hold what other runs wrote, else what stood in the way.
    """
    _require_own(root)
    try:
        removed = _remove_all(store)
    except NotFoundError:
        removed = 0  # There is no such bucket.
    say(f"removed {removed} objects below {store.uri}")
    return CleanupResult(removed=removed)


def _remove_all(store: Store) -> int:
    removed = 0
    for _ in range(ROUNDS):
        keys = [found.key for found in store.list()]
        if MANIFEST_FILE in keys:
            store.delete(MANIFEST_FILE)  # First: readers trust it, and half an artifact is none.
        with ThreadPoolExecutor(PARALLEL_REMOVALS) as pool:
            list(pool.map(store.delete, keys))
        removed += len(keys)
        if not keys and not store.abort_uploads():
            return removed
    raise infrastructure(f"{store.uri} still holds objects after {ROUNDS} rounds: somebody writes there")


def _require_own(root: RunRoot) -> None:
    """Raise RunError unless the root names this run alone: nobody else has its uid."""
    own = [root.identity.namespace, root.identity.name, root.identity.uid]
    if root.output_uri.rstrip("/").split("/")[-3:] != own or not all(own) or ".." in own:
        message = f"{root.output_uri} does not end in /{'/'.join(own)}: other runs may write there, nothing is removed"
        remedy = "Remove by hand what is not needed any more."
        raise RunError(FailureClass.INVALID_CONFIG, "OutputNotOwn", message, remedy)
