"""Prometheus metrics of the operator at work: its passes, its queue, its requests, the reports it takes.

Every label is a closed set: nothing that a user or a trainer can spell ever becomes one. How many runs there are, and
how they stand, is told by `fleet.py`; what they came to, by `tally.py`.
"""

from enum import StrEnum

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # The time at which each counter began would be as many series again.


class PassOutcome(StrEnum):
    """How a pass over a Finetune ended."""

    OK = "ok"
    CONFLICT = "conflict"
    """The Finetune had changed meanwhile: looked at again at once."""
    UNREACHABLE = "unreachable"
    """The API server did not answer, or could not now."""
    REFUSED = "refused"
    """The API server would not do what was asked for."""
    BUG = "bug"
    """An error that nobody has foreseen; the log has it whole."""


class ReportOutcome(StrEnum):
    """What became of a progress report; only an accepted one changes anything."""

    ACCEPTED = "accepted"
    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    UNVERIFIED = "unverified"
    """The API server could not say now whose token it was."""
    FORBIDDEN = "forbidden"
    """Its token belongs to no pod of the run it is about: forged, expired, or another run's."""
    STALE = "stale"
    """It is older than one that was taken: replayed, or late."""
    THROTTLED = "throttled"
    """It came too soon after the last one, or with too many others whose tokens nobody knows."""


PASSES = Counter("finetune_reconciles_total", "Passes over a Finetune, by outcome", ["outcome"])
PASS_SECONDS = Histogram(
    "finetune_reconcile_seconds",
    "Duration of one pass over a Finetune, in seconds",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
QUEUE_LENGTH = Gauge("finetune_queue_length", "Finetunes that are due for a pass now")
QUEUE_SECONDS = Histogram(
    "finetune_queue_seconds",
    "Time that a Finetune which was due has waited for its pass, in seconds",
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60),
)
RETRYING = Gauge("finetune_retrying", "Finetunes whose last pass failed, and that wait for their next one")
REQUESTS = Counter("finetune_api_requests_total", "Requests to the API server, by verb and answer", ["verb", "code"])
"""`code` is the HTTP status, or `none` where there was no answer."""
STATUS_WRITES = Counter("finetune_status_writes_total", "Statuses written")
REPORTS = Counter("finetune_reports_total", "Progress reports, by what became of them", ["outcome"])
LEADER = Gauge("finetune_leader", "1 while this process holds the Lease and works, else 0")
HEARTBEAT_AGE = Gauge("finetune_heartbeat_age_seconds", "Time since the watch of the own Lease last told something")
LOOP_LAG = Gauge("finetune_loop_lag_seconds", "How late the event loop was in the last minute, at most, in seconds")

for passed in PassOutcome:
    PASSES.labels(passed)
for reported in ReportOutcome:
    REPORTS.labels(reported)
