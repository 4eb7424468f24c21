"""`decide` over anything: it never raises, a second call changes nothing, and there is always a way out."""

from dataclasses import replace
from datetime import timedelta

from finetune_api.names import CLEANUP_FINALIZER, FailureClass, Phase, Stage
from finetune_api.reasons import Reason
from finetune_api.resource import Finetune
from finetune_api.status import FinetuneStatus
from finetune_operator.decide import decide
from finetune_operator.deletion import depart
from finetune_operator.observed import Cleanup, Job, JobState, Observed
from finetune_operator.verdict import is_over
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import NOON, a_failure_message, a_finetune, a_job, a_pod, a_report, a_result, some_settings

messages = st.one_of(
    st.none(),
    st.text(max_size=30),
    st.sampled_from([a_result(stage).to_message() for stage in Stage]),
    st.builds(
        lambda stage, kind: a_failure_message(stage, kind, "Why", "x" * 1500),
        st.sampled_from(Stage),
        st.sampled_from(FailureClass),
    ),
)
pods = st.builds(
    lambda **facts: a_pod(**facts),
    name=st.sampled_from(["a", "b"]),
    phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
    created_at=st.sampled_from([None, NOON]),
    started_at=st.sampled_from([None, NOON]),
    waiting=st.one_of(st.none(), st.text(max_size=3000)),
    scheduled=st.sampled_from([None, True, False]),
    exit_code=st.sampled_from([None, 0, 1, 42, 43, 44, 45, 137, 143, 255]),
    exit_reason=st.sampled_from([None, "OOMKilled", "Error"]),
    message=messages,
    disruption=st.sampled_from([None, "PreemptionByScheduler"]),
    reason=st.sampled_from([None, "Evicted"]),
    index=st.integers(0, 1),
)
jobs: st.SearchStrategy[Job] = st.builds(
    lambda stage, attempt, state, seen, **facts: replace(a_job(stage, attempt, state, *seen), **facts),
    st.sampled_from(Stage),
    st.integers(1, 3),
    st.sampled_from(JobState),
    st.lists(pods, max_size=2),
    size=st.integers(1, 2),
    is_failing=st.booleans(),
    is_suspended=st.booleans(),
    deleted_at=st.sampled_from([None, NOON]),
    queue_priority=st.sampled_from(["", "high"]),
    trouble=st.one_of(st.none(), st.text(max_size=3000)),
)
reports = st.one_of(
    st.none(),
    st.builds(
        lambda stage, attempt, seconds, activity, step: a_report(
            stage, attempt, NOON + timedelta(seconds=seconds), activity=activity, progress={"step": step}
        ),
        st.sampled_from(Stage),
        st.integers(1, 3),
        st.integers(0, 30),
        st.sampled_from(["preparing", "loading", "training", "evaluating", "publishing"]),
        st.integers(0, 9),
    ),
)
LABELS = st.sampled_from([{}, {"pool": "h100"}])


def a_base(status: FinetuneStatus) -> Finetune:
    base = a_finetune(status=status)
    return base.model_copy(update={"metadata": base.metadata.model_copy(update={"uid": "of-the-base"})})


def well_done(stage: Stage, attempt: int = 1) -> Job:
    pod = a_pod(phase="Succeeded", message=a_result(stage).to_message())
    return a_job(stage, attempt, JobState.COMPLETE, pod)


CANCELLED = decide(a_finetune(cancel=True), Observed(), some_settings(), NOON).status
SUCCEEDED = decide(a_finetune(), Observed(jobs=tuple(map(well_done, Stage))), some_settings(), NOON).status
bases = st.lists(st.sampled_from([*map(a_base, (FinetuneStatus(), CANCELLED, SUCCEEDED))]), max_size=1).map(tuple)
worlds = st.builds(
    Observed,
    jobs=st.lists(jobs, max_size=4).map(tuple),
    orphans=st.lists(pods, max_size=1).map(tuple),
    report=reports,
    readings=st.lists(jobs, max_size=1).map(tuple),
    bases=bases,
    node=st.one_of(st.none(), LABELS),
    nodes=st.lists(LABELS, max_size=2).map(tuple),
)
SPECS = st.sampled_from(
    [
        {},
        {"retryLimit": 0},
        {"model": {"finetuneRef": {"name": "base"}}},
        {"suspend": True},
        {"cancel": True},
        {"activeDeadlineSeconds": 20},
        {"pendingDeadlineSeconds": 20},
        {"trainer": {"nodes": 2}, "queue": {"name": "gpus", "priorityClassName": "low"}},
        {"budget": {"limit": "0.05"}},
        {"guards": {"stallSeconds": 20}},
        {"guards": {"stallSeconds": 20, "onStall": "Restart"}, "retryLimit": 1},
        {"ttlSecondsAfterFinished": 30},
        {"storage": {"endpoint": "http://169.254.169.254"}},
    ]
)
SETTINGS = some_settings(gpus=[{"name": "any", "pricePerHour": "9.00"}], prices={"currency": "EUR"})
"""With a price for every GPU, so that a minute costs 15 cents."""


HISTORIES = st.lists(st.tuples(worlds, st.integers(-30, 100), SPECS), min_size=1, max_size=6)
"""What passes see, how many seconds after one another by a clock that may jump back, and what is wanted by then."""

SAID = {*Reason, "Why", "PreemptionByScheduler"}
"""Every reason that a condition can have: ours, the trainer's and the cluster's of these worlds."""


@given(HISTORIES)
def test_decide_never_raises_and_a_second_call_changes_nothing(
    history: list[tuple[Observed, int, dict[str, object]]],
) -> None:
    status, now = FinetuneStatus(), NOON
    for observed, seconds, spec in history:
        now += timedelta(seconds=seconds)
        before = status
        decision = decide(a_finetune(status=before, **spec), observed, SETTINGS, now)
        status = decision.status
        again = decide(a_finetune(status=status, **spec), observed, SETTINGS, now)
        begun = decision.start and observed.job(decision.start.stage, decision.start.number)
        if not begun:  # A Job that is there before it is asked for is news to the second call.
            assert again.status == status, "an idle Finetune would be written for ever"
        if is_over(before):
            assert status.phase == before.phase, "a run that was over began again"
        assert len(status.to_json()["conditions"]) >= 5
        assert {condition.reason for condition in status.conditions} <= SAID, "a reason that no page explains"


@given(worlds, SPECS)
def test_every_unfinished_phase_has_something_that_moves_it_on(observed: Observed, spec: dict[str, object]) -> None:
    status = FinetuneStatus()
    for _ in range(6):
        decision = decide(a_finetune(status=status, **spec), observed, SETTINGS, NOON)
        status = decision.status
    everything = [*observed.orphans, *(pod for job in observed.jobs for pod in job.pods)]
    alive = any(job.state is JobState.RUNNING for job in observed.jobs) or any(pod.is_active for pod in everything)
    alive = alive or any(reading.state is JobState.RUNNING for reading in observed.readings)
    ended = status.phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.SUSPENDED, Phase.CANCELLED)
    assert ended or alive or decision.start or decision.check_again


@given(HISTORIES)
def test_no_job_is_created_beside_another_or_for_a_run_that_is_to_rest(
    history: list[tuple[Observed, int, dict[str, object]]],
) -> None:
    status, now = FinetuneStatus(), NOON
    for observed, seconds, spec in history:
        now += timedelta(seconds=seconds)
        decision = decide(a_finetune(status=status, **spec), observed, SETTINGS, now)
        status = decision.status
        if decision.start is None:
            continue
        assert decision.read is None, "it is not known yet whether anything is to be done again"
        everything = [*observed.orphans, *(pod for job in observed.jobs for pod in job.pods)]
        assert not any(pod.is_active for pod in everything), "two gangs would have run at once"
        assert not decision.stop
        assert not spec.get("cancel")
        assert not (spec.get("suspend") and decision.start.stage is Stage.TRAIN)


GENEROUS: dict[str, object] = {"retryLimit": 100, "activeDeadlineSeconds": 315_360_000}
"""What a person may do for a run: raise its limits, and suspend it no more."""


def test_the_bases_are_what_they_are_meant_to_be() -> None:
    assert (CANCELLED.phase, SUCCEEDED.phase) == (Phase.CANCELLED, Phase.SUCCEEDED)


@given(HISTORIES)
def test_every_state_has_a_way_to_an_end(history: list[tuple[Observed, int, dict[str, object]]]) -> None:
    status, now = FinetuneStatus(), NOON
    for observed, seconds, spec in history:
        now += timedelta(seconds=seconds)
        status = decide(a_finetune(status=status, **spec), observed, SETTINGS, now).status
    done: tuple[Job, ...] = ()
    for _ in range(8):
        if is_over(status):
            break
        now += timedelta(minutes=10)
        decision = decide(a_finetune(status=status, **GENEROUS), Observed(jobs=done), SETTINGS, now)
        status = decision.status
        if start := decision.start:
            done += (well_done(start.stage, start.number),)
    assert status.phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)


cleanups = st.one_of(
    st.none(),
    st.builds(Cleanup, st.sampled_from(JobState), st.just(NOON), st.one_of(st.none(), st.text(max_size=30)), st.none()),
)


@given(worlds, cleanups, st.integers(0, 2000))
def test_a_finetune_that_is_deleted_always_goes_in_the_end(world: Observed, cleanup: Cleanup | None, age: int) -> None:
    finetune = a_finetune(output={"uri": "s3://out/models", "deletionPolicy": "Delete"})
    leaving = {"deletion_timestamp": NOON, "finalizers": [CLEANUP_FINALIZER]}
    finetune = finetune.model_copy(update={"metadata": finetune.metadata.model_copy(update=leaving)})
    observed = replace(world, cleanup=cleanup)
    departure = depart(finetune, observed, some_settings(), NOON + timedelta(seconds=age))
    assert departure.farewell or departure.check_again
    assert departure.farewell or age < 610 or not cleanup, "it would hang"
    if departure.clean:
        assert (*observed.jobs, *observed.readings) == (), "their pods may still write"
        assert not any(pod.is_active for pod in observed.orphans), "it may still write"
