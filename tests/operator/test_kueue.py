"""The name of a Job's Workload, by which Kueue's Events about it are found."""

from hashlib import sha1

from finetune_operator.kueue import workload_names

UID = "9f3c2a10-0000-4000-8000-000000000001"


def ending(job: str) -> str:
    return sha1(f"Job\nbatch\n{job}\n{UID}".encode(), usedforsecurity=False).hexdigest()[:5]


def test_a_short_name_has_one_form() -> None:
    assert workload_names("story-train-1", UID) == [f"job-story-train-1-{ending('story-train-1')}"]


def test_a_long_name_may_have_been_cut_to_what_a_label_takes() -> None:
    job = "x" * 60
    short, long = sorted(workload_names(job, UID), key=len)
    assert (short, len(short)) == (f"job-{'x' * 53}-{ending(job)}", 63)
    assert long == f"job-{job}-{ending(job)}"
