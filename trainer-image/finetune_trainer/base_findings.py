"""What the base says is measured once: a further attempt at the same run reads it beside the checkpoints.

A file is found by a digest of all that decides it, so an attempt on another device, or over other rows, measures anew.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256

from finetune_api.metrics import Metric
from finetune_api.names import CHECKPOINTS_FOLDER

from finetune_trainer.measure import Findings
from finetune_trainer.run_setup import Setup
from finetune_trainer.store import NotFoundError, Store


def base_findings(setup: Setup, packed: bool, measure: Callable[[], Findings]) -> Findings:
    """What an earlier attempt found, or what `measure` finds, on every rank; the first rank keeps it."""
    key = _key(setup, packed)
    found = setup.team.from_first(lambda: _read(setup.store, key))
    if found is None:
        found = measure()
        if setup.team.is_first:
            setup.store.put_bytes(key, json.dumps(asdict(found)).encode())
    return found


def _key(setup: Setup, packed: bool) -> str:
    decides = [
        setup.spec.training.to_json(),
        setup.files.model.revision,
        setup.files.revision,
        setup.prepared.index.files,
        setup.facts(packed),
    ]
    digest = sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return f"{CHECKPOINTS_FOLDER}/base-{digest[:16]}.json"


def _read(store: Store, key: str) -> Findings | None:
    """None where there is nothing, or nothing that can be read: it costs no more than measuring again."""
    try:
        found = json.loads(store.get_bytes(key))
        return Findings({Metric(name): value for name, value in found["values"].items()}, found["samples"])
    except (NotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
