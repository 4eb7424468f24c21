"""The newest report of each running trainer, in memory: after a restart the next one arrives within seconds."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from finetune_api.names import Stage
from finetune_api.run import ProgressReport

from finetune_operator.observed import Report

CAPACITY = 10_000
"""Most runs remembered; the one that has been silent longest is forgotten first."""


@dataclass(frozen=True)
class Place:
    """Where a report stands among those of its pod."""

    line: str
    """Whose reports are in one order: a pod's, in one protocol."""
    number: float
    """Grows from report to report; 0 where the pod does not count them."""


@dataclass(frozen=True)
class _Entry:
    report: Report
    place: Place


class ReportBook:
    """Latest report by the uid of its Finetune."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def put(self, report: ProgressReport, place: Place) -> bool:
        """Remember the report; False for one that is older than what is known, and changes nothing."""
        old = self._entries.get(report.identity.uid)
        if old and _is_stale(report, place, old):
            return False
        self._entries.pop(report.identity.uid, None)
        self._entries[report.identity.uid] = _Entry(Report(report, _arrival(old)), place)
        while len(self._entries) > CAPACITY:
            del self._entries[next(iter(self._entries))]
        return True

    def newest(self, uid: str) -> Report | None:
        """The newest report of that Finetune."""
        entry = self._entries.get(uid)
        return entry.report if entry else None

    def forget(self, uid: str) -> None:
        """Drop what is known of a Finetune that is gone."""
        self._entries.pop(uid, None)


def _arrival(old: _Entry | None) -> datetime:
    """When a report came, in whole seconds, as a status holds it; of two in one second the later one came in the next.

    By it a pass sees whether the newest report is in the status already.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    return max(now, old.report.received_at + timedelta(seconds=1)) if old else now


def _is_stale(report: ProgressReport, place: Place, old: _Entry) -> bool:
    """Of an earlier attempt, of one that has told its result already, or earlier in the line of its pod."""
    attempt, known = _attempt(report), _attempt(old.report.body)
    if attempt != known:
        return attempt < known
    if old.report.body.result and not report.result:
        return True
    return place.line == old.place.line and 0 < place.number <= old.place.number


def _attempt(report: ProgressReport) -> tuple[int, int]:
    return list(Stage).index(report.stage), report.attempt
