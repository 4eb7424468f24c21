"""How many runs there are and how they stand, for Prometheus: counted anew at every scrape, from what was last seen.

What is remembered of a run is a few words and numbers. After a restart the first listing brings all of it back.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

from finetune_api.names import OWN_MANAGERS, ConditionType, FailureClass, Phase, Stage
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_operator.observed import parse_time

Body: TypeAlias = Mapping[str, Any]

W = TypeVar("W", bound=StrEnum)

ALL = tuple(Phase)

WAITING = (Phase.PENDING, Phase.QUEUED)
"""Phases of a run that waits for a node, an image or a queue."""

WATCHED = (ConditionType.SCHEDULED, ConditionType.PROGRESSING, ConditionType.GPU_BUSY)
"""Conditions that are false where a run that goes on does so badly."""


@dataclass(frozen=True)
class Standing:
    """How one run stands."""

    phase: Phase
    gpus: int
    """GPUs that it holds or waits for; before its data is validated, and after its end, none."""
    stalled_for: FailureClass | None
    """Why it has failed, or is held until a limit is raised."""
    waiting_since: datetime | None
    progress_at: datetime | None
    """When training last said something, or began."""
    troubles: tuple[ConditionType, ...] = ()
    """Which of `WATCHED` are false."""


class Fleet(Collector):
    """Every run that this operator looks after."""

    def __init__(self) -> None:
        self._standings: dict[Hashable, Standing] = {}

    def note(self, key: Hashable, finetune: Body) -> None:
        """Remember how the run stands, by the object that the API server has just told of."""
        if finetune["spec"].get("managedBy", "") in OWN_MANAGERS:
            self._standings[key] = standing(finetune)
        else:
            self.forget(key)

    def forget(self, key: Hashable) -> None:
        """The run is gone."""
        self._standings.pop(key, None)

    def keep(self, keys: Collection[Hashable]) -> None:
        """Forget every run that is not among these: its end was never told."""
        for key in self._standings.keys() - set(keys):
            del self._standings[key]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges, as of now. A phase that nobody is in is 0, not absent."""
        seen, now = list(self._standings.values()), datetime.now(UTC)
        yield _by_phase("finetune_runs", "Finetunes, by phase", ALL, Counter(run.phase for run in seen))
        gpus: Counter[Phase] = Counter()
        for run in seen:
            gpus[run.phase] += run.gpus
        words = "GPUs of runs, by phase: held while they train and publish, else waited for"
        yield _by_phase("finetune_gpus", words, ALL, gpus)
        stalled = GaugeMetricFamily(
            "finetune_runs_stalled", "Finetunes that have failed or are held, by class of failure", labels=["class"]
        )
        causes = Counter(run.stalled_for for run in seen)
        for kind in FailureClass:
            stalled.add_metric([kind], causes[kind])
        yield stalled
        troubled = GaugeMetricFamily(
            "finetune_runs_troubled",
            "Finetunes of which a condition that ought to be true is false",
            labels=["condition"],
        )
        for condition in WATCHED:
            troubled.add_metric([condition], sum(condition in run.troubles for run in seen))
        yield troubled
        waits = {phase: _longest(now, (run.waiting_since for run in seen if run.phase is phase)) for phase in WAITING}
        words = "How long the run that has waited longest has done so, in seconds, by phase"
        yield _by_phase("finetune_longest_wait_seconds", words, WAITING, waits)
        training = (run.progress_at for run in seen if run.phase is Phase.TRAINING)
        words = "How long ago the run in training that has been silent longest last told of progress, in seconds"
        yield GaugeMetricFamily("finetune_oldest_progress_seconds", words, value=_longest(now, training))


def standing(finetune: Body) -> Standing:
    """The facts that are counted of a Finetune as the API server returns it, even before it has a status."""
    status = finetune.get("status", {})
    conditions = {item["type"]: item for item in status.get("conditions", [])}
    stages = {item["name"]: item for item in status.get("stages", [])}
    phase = _member(Phase, status.get("phase")) or Phase.PENDING
    is_stalled = conditions.get(ConditionType.STALLED, {}).get("status") == "True"
    progress = status.get("progress", {}).get("updatedAt") or stages.get(Stage.TRAIN, {}).get("startedAt")
    waits = [item["waitingSince"] for item in stages.values() if item.get("waitingSince")]
    return Standing(
        phase=phase,
        gpus=_gpus(finetune["spec"]) if _wants_gpus(phase, conditions) else 0,
        stalled_for=_member(FailureClass, status.get("failure", {}).get("class")) if is_stalled else None,
        waiting_since=parse_time(max(waits, default=None)),
        progress_at=parse_time(progress),
        troubles=tuple(kind for kind in WATCHED if conditions.get(kind, {}).get("status") == "False"),
    )


def _member(words: type[W], word: str | None) -> W | None:
    """The member of that name; None for none, and for one of another version of this operator."""
    return next((member for member in words if member == word), None)


def _wants_gpus(phase: Phase, conditions: Body) -> bool:
    validated = conditions.get(ConditionType.DATA_VALIDATED, {}).get("status") == "True"
    return validated and phase in (*WAITING, Phase.TRAINING, Phase.PUBLISHING)


def _gpus(spec: Body) -> int:
    trainer = spec.get("trainer", {})
    return int(trainer.get("nodes", 1)) * int(trainer.get("gpusPerNode", 1))


def _longest(now: datetime, since: Iterator[datetime | None]) -> float:
    return max((max(0.0, (now - moment).total_seconds()) for moment in since if moment), default=0.0)


def _by_phase(name: str, words: str, phases: Collection[Phase], values: Mapping[Phase, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=["phase"])
    for phase in phases:
        family.add_metric([phase], values.get(phase, 0))
    return family
