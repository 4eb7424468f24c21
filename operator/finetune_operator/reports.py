"""The newest report of each running trainer, in memory: after a restart the next one arrives within seconds."""

from datetime import UTC, datetime

from finetune_api.run import ProgressReport

from finetune_operator.observed import Report

CAPACITY = 10_000
"""Most runs remembered; the one that has been silent longest is forgotten first."""


class ReportBook:
    """Latest report by the uid of its Finetune."""

    def __init__(self) -> None:
        self._reports: dict[str, Report] = {}

    def put(self, report: ProgressReport) -> None:
        """Remember the report. A final result of an attempt is not replaced by a straggler of the same attempt."""
        old = self._reports.pop(report.identity.uid, None)
        if old and old.body.result and (old.body.stage, old.body.attempt) == (report.stage, report.attempt):
            self._reports[report.identity.uid] = old
            return
        self._reports[report.identity.uid] = Report(report, datetime.now(UTC).replace(microsecond=0))
        while len(self._reports) > CAPACITY:
            del self._reports[next(iter(self._reports))]

    def newest(self, uid: str) -> Report | None:
        """The newest report of that Finetune."""
        return self._reports.get(uid)

    def forget(self, uid: str) -> None:
        """Drop what is known of a Finetune that is gone."""
        self._reports.pop(uid, None)
