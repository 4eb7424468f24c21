"""Prometheus metrics of the operator."""

from prometheus_client import Counter, Gauge, Histogram

RECONCILES = Counter("finetune_reconciles_total", "Passes over a Finetune, by outcome", ["outcome"])
RECONCILE_SECONDS = Histogram("finetune_reconcile_seconds", "Duration of one pass over a Finetune, in seconds")
QUEUE_LENGTH = Gauge("finetune_queue_length", "Finetunes waiting for a pass")
REPORTS = Counter("finetune_reports_total", "Progress reports, by outcome", ["outcome"])
