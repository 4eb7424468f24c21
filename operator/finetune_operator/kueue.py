"""What Kueue calls the Workload that it keeps for a Job: its Events say why the Job waits. Pure.

Source: Kueue, `pkg/controller/jobframework/workload_names.go`.
"""

from hashlib import sha1

HASH_LENGTH = 5

NAME_LENGTHS = (253, 63)
"""Longest name of a Workload, without and with Kueue's feature gate ShortWorkloadNames."""


def workload_names(job_name: str, job_uid: str) -> list[str]:
    """The names that the Workload of a Job may have: one, but where the longer one would not be short enough."""
    digest = sha1("\n".join(("Job", "batch", job_name, job_uid)).encode(), usedforsecurity=False).hexdigest()
    ends = {f"job-{job_name}"[: length - 1 - HASH_LENGTH] for length in NAME_LENGTHS}
    return sorted(f"{name}-{digest[:HASH_LENGTH]}" for name in ends)
