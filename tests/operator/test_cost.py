"""Rule C: what a run costs, to the cent; and the budget that bounds it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from finetune_api.money import CostStatus
from finetune_api.names import ConditionType, FailureClass, Phase
from finetune_api.status import FinetuneStatus
from finetune_operator.conditions import condition_of
from finetune_operator.cost import money
from finetune_operator.decide import Decision, decide
from finetune_operator.observed import Job, Observed
from finetune_operator.settings import Settings
from finetune_operator.verdict import Attempt
from pydantic import ValidationError

from tests.builders import NOON, a_failed_pod, a_finetune, a_job, a_pod, a_report, a_result, some_settings
from tests.operator.deciding import A_POD, COMPLETE, FAILED, PREPARE, RUNNING, TRAIN

ON_H100 = {"nodeSelector": {"pool": "h100"}}
EFFECTIVE = {"epochs": 3, "totalSteps": 90, "trainBatchSize": 8, "gradientAccumulationSteps": 1, "devices": 1}
PREPARED = a_job(
    PREPARE,
    1,
    COMPLETE,
    a_pod(
        phase="Succeeded",
        message=a_result(
            PREPARE, data={"tokens": 3_000_000, "sequences": 240}, effectiveHyperparameters=EFFECTIVE
        ).to_message(),
    ),
)
DONE = a_job(TRAIN, 1, COMPLETE, a_pod(phase="Succeeded", started_at=NOON, message=a_result(TRAIN).to_message()))
PRICES = {"currency": "EUR", "overheadPercent": 10}


def a_table(prices: dict[str, Any] | None = None, **h100: Any) -> Settings:
    """Settings with a price table for the H100, and a cheaper GPU for all other nodes."""
    fast = {"name": "H100", "nodeLabels": {"pool": "h100"}, "pricePerHour": "2.50", "tokensPerSecond": 5000} | h100
    other = {"name": "L4", "pricePerHour": "1.00", "tokensPerSecond": 1000}
    return some_settings(gpus=[fast, other], prices=PRICES | (prices or {}))


def decided(
    status: FinetuneStatus | None, *jobs: Job, seconds: float = 0, settings: Settings | None = None,
    seen: dict[str, Any] | None = None, **spec: Any,
) -> Decision:  # fmt: skip
    """One decision, `seconds` after noon, of a run on an H100."""
    observed = Observed(jobs=jobs, **(seen or {}))
    finetune = a_finetune(status=status, **({"trainer": ON_H100} | spec))
    return decide(finetune, observed, settings or a_table(), NOON + timedelta(seconds=seconds))


def prepared(**arguments: Any) -> Decision:
    """The decision once the data is ready."""
    return decided(decided(None, **arguments).status, PREPARED, **arguments)


def cost_of(decision: Decision) -> CostStatus:
    assert decision.status.cost is not None
    return decision.status.cost


@pytest.mark.parametrize(
    ("table", "trainer", "estimated"),
    [
        ({}, {}, "1.38"),
        ({}, {"gpusPerNode": 2}, "1.38"),
        ({"pricePerHour": None, "pricePerMillionTokens": "3.00"}, {}, "29.70"),
        ({"tokensPerSecond": None}, {}, None),
        ({"tokensPerSecond": "2500.5"}, {}, "2.75"),
    ],
)
def test_the_estimate_is_that_of_the_price_table(
    table: dict[str, Any], trainer: dict[str, Any], estimated: str | None
) -> None:
    cost = cost_of(prepared(settings=a_table(**table), trainer=ON_H100 | trainer))
    assert (cost.currency, cost.gpu, cost.estimated, cost.spent, cost.lost) == (
        "EUR",
        "H100",
        estimated,
        "0.00",
        "0.00",
    )
    assert (cost.warning is None) == (estimated is not None)


def test_a_run_created_suspended_is_quoted_and_gets_no_gpu() -> None:
    quoted = prepared(suspend=True)
    assert (quoted.start, quoted.status.phase) == (None, Phase.SUSPENDED)
    assert (cost_of(quoted).estimated, cost_of(quoted).spent) == ("1.38", "0.00")


def test_the_estimate_of_prepare_serves_where_the_table_has_no_speed() -> None:
    result = a_result(
        PREPARE,
        data={"tokens": 3_000_000, "sequences": 240},
        effectiveHyperparameters=EFFECTIVE,
        plan={"precision": "bfloat16", "attention": "packed", "microBatchTokens": 9, "activationCheckpointing": False},
        estimate={"gpu": "H100", "gpuSeconds": 1800},
    )
    job, table = replace(PREPARED, pods=(a_pod(message=result.to_message()),)), a_table(tokensPerSecond=None)
    status = decided(decided(None).status, job, settings=table).status
    assert status.cost is not None
    assert (status.cost.estimated, status.cost.warning) == ("1.38", None)
    assert (status.plan, status.estimate) == (result.plan, result.estimate)


def test_steps_that_are_asked_for_in_place_of_epochs_are_reckoned_with() -> None:
    effective = EFFECTIVE | {"maxSteps": 15, "totalSteps": 15}  # Half an epoch of 30 steps.
    result = a_result(PREPARE, data={"tokens": 3_000_000, "sequences": 240}, effectiveHyperparameters=effective)
    job = replace(PREPARED, pods=(a_pod(phase="Succeeded", message=result.to_message()),))
    assert cost_of(decided(decided(None).status, job)).estimated == "0.23"


def test_what_is_served_and_kept_is_quoted() -> None:
    prices = {"inferencePerMillionTokens": "0.405", "hostingPerHour": "0.05", "storagePerGibMonth": "2"}
    table = a_table(prices)
    quoted = cost_of(prepared(settings=table))
    assert quoted.inference == "0.41"
    assert quoted.hosting is not None
    assert (quoted.hosting.per_hour, quoted.hosting.per_month) == ("0.05", "36.00")
    assert quoted.storage is not None
    assert (quoted.storage.per_gib_month, quoted.storage.per_month) == ("2.00", None)
    running = decided(prepared(settings=table).status, PREPARED, a_job(TRAIN, 1, RUNNING, A_POD), settings=table).status
    artifact = a_result(TRAIN).to_json()["artifact"] | {"bytes": 2**29}
    message = a_result(TRAIN, artifact=artifact).to_message()
    done = replace(DONE, pods=(a_pod(phase="Succeeded", started_at=NOON, message=message),))
    kept = cost_of(decided(running, PREPARED, done, settings=table)).storage
    assert kept is not None
    assert kept.per_month == "1.00"


def test_the_current_month_is_what_is_left_of_it_in_utc() -> None:
    table, finetune = a_table({"hostingPerHour": "0.05"}), a_finetune(trainer=ON_H100)
    now = datetime(2028, 2, 29, 23, tzinfo=UTC) - timedelta(hours=199)
    status = decide(finetune, Observed(), table, now).status
    cost = decide(a_finetune(status=status, trainer=ON_H100), Observed(jobs=(PREPARED,)), table, now).status.cost
    assert cost is not None
    assert cost.hosting is not None
    assert cost.hosting.current_month == "10.00"


@pytest.mark.parametrize(
    ("settings", "trainer", "words"),
    [
        (some_settings(), ON_H100, "whoever runs the operator has set none"),
        (a_table(), {"gpusPerNode": 0}, "trainer.gpusPerNode is 0"),
        (a_table(pricePerHour=None), ON_H100, "settings.gpus has none for GPU H100"),
        (
            some_settings(gpus=[{"name": "A", "nodeLabels": {"a": "b"}}], prices=PRICES),
            {},
            "which GPU of settings.gpus",
        ),
    ],
)
def test_without_a_price_the_run_goes_on_and_amounts_are_absent(
    settings: Settings, trainer: dict[str, Any], words: str
) -> None:
    decision = prepared(settings=settings, trainer=trainer, budget={"limit": "0"})
    cost = cost_of(decision)
    assert decision.start == Attempt(TRAIN, 1)
    assert (cost.estimated, cost.spent, cost.lost) == (None, None, None)
    assert words in (cost.warning or "")
    assert "spec.budget bounds nothing" in (cost.warning or "")


@pytest.mark.parametrize(
    ("seen", "gpu"),
    [
        ({"node": {"pool": "h100"}}, "H100"),
        ({"node": {"pool": "other"}}, "L4"),
        ({"nodes": ({"pool": "h100"}, {"pool": "h100"}, {"pool": "cpus"})}, "H100"),
        ({"nodes": ({"pool": "h100"}, {"nvidia.com/gpu.product": "L4"})}, None),
        ({}, "L4"),
    ],
)
def test_which_gpu_it_is_follows_from_its_node_or_from_the_nodes_it_may_get(
    seen: dict[str, Any], gpu: str | None
) -> None:
    assert cost_of(prepared(trainer={}, seen=seen)).gpu == gpu


def test_time_of_pods_is_spent_and_written_once_a_minute_while_nothing_else_is() -> None:
    running = a_job(TRAIN, 1, RUNNING, A_POD)
    status = decided(prepared().status, PREPARED, running).status
    assert decided(status, PREPARED, running, seconds=59).status == status
    later = decided(status, PREPARED, running, seconds=1800)
    assert cost_of(later).spent == "1.38"
    assert decided(later.status, PREPARED, running, seconds=1800).status == later.status


def test_a_gang_pays_for_all_its_gpus() -> None:
    trainer = ON_H100 | {"nodes": 2, "gpusPerNode": 4}
    running = replace(a_job(TRAIN, 1, RUNNING, A_POD, replace(A_POD, name="b", index=1)), size=2)
    status = decided(prepared(trainer=trainer).status, PREPARED, running, trainer=trainer).status
    assert cost_of(decided(status, PREPARED, running, seconds=1800, trainer=trainer)).spent == "11.00"


def test_pods_that_wait_for_the_last_of_their_gang_cost_as_much() -> None:
    trainer = ON_H100 | {"nodes": 3, "gpusPerNode": 2}
    first, second, third = (replace(A_POD, name=name, index=index) for index, name in enumerate("abc"))
    second = replace(second, started_at=NOON + timedelta(seconds=600))
    waiting = replace(a_job(TRAIN, 1, RUNNING, first, second, a_pod(name="c", index=2)), size=3)
    status = decided(prepared(trainer=trainer).status, PREPARED, waiting, seconds=1200, trainer=trainer).status
    assert status.cost is not None
    assert (status.active_seconds, status.cost.spent) == (0, "2.75"), "two pods, for 20 and for 10 minutes"
    whole = replace(waiting, pods=(first, second, replace(third, started_at=NOON + timedelta(seconds=1800))))
    status = decided(status, PREPARED, whole, seconds=1800, trainer=trainer).status
    assert status.cost is not None
    assert status.cost.spent == "4.58", "30 and 20 minutes"
    assert cost_of(decided(status, PREPARED, whole, seconds=3600, trainer=trainer)).spent == "12.83"
    assert decided(status, PREPARED, whole, seconds=1801, trainer=trainer).status == status


def test_a_gang_that_never_gathered_is_paid_for() -> None:
    gang: dict[str, Any] = {"trainer": ON_H100 | {"nodes": 2}, "pendingDeadlineSeconds": 1800}
    waiting = replace(a_job(TRAIN, 1, RUNNING, A_POD, a_pod(name="b", index=1)), size=2)
    status = decided(prepared(**gang).status, PREPARED, waiting, **gang).status
    held = decided(status, PREPARED, waiting, seconds=1800, **gang)
    assert (held.stop, held.status.phase, cost_of(held).spent) == ((waiting,), Phase.SUSPENDED, "1.38")
    again = decided(held.status, PREPARED, seconds=1900, **(gang | {"pendingDeadlineSeconds": 3600}))
    assert (again.start, cost_of(again).spent) == (Attempt(TRAIN, 2), "1.38")


def taken_away(attempt: int, start: float, end: float, saved: float | None = None) -> Job:
    """An attempt that the cluster took away, with the checkpoint that it told of."""
    parts: dict[str, Any] = {}
    if saved is not None:
        at = (NOON + timedelta(seconds=saved)).isoformat()
        parts = {"checkpoint": {"step": 60, "uri": "s3://out/checkpoints/step-60", "savedAt": at}}
    failure = {"class": "Preempted", "reason": "Terminated", "message": "told to stop"}
    message = a_result(TRAIN, artifact=None, failure=failure, **parts).to_message()
    pod = a_failed_pod(exit_code=143, message=message, started_at=NOON + timedelta(seconds=start))
    return replace(a_job(TRAIN, attempt, FAILED, pod), finished_at=NOON + timedelta(seconds=end))


def test_what_no_checkpoint_kept_is_lost() -> None:
    status = decided(prepared().status, PREPARED, a_job(TRAIN, 1, RUNNING, A_POD)).status
    first = decided(status, PREPARED, taken_away(1, 0, 3600, saved=1800), seconds=3600)
    assert (first.start, cost_of(first).spent, cost_of(first).lost) == (Attempt(TRAIN, 2), "2.75", "1.38")
    pod = replace(A_POD, started_at=NOON + timedelta(seconds=4000))
    again = decided(first.status, PREPARED, a_job(TRAIN, 2, RUNNING, pod), seconds=4000).status
    second = decided(again, PREPARED, taken_away(2, 4000, 4360), seconds=4360)
    assert (cost_of(second).spent, cost_of(second).lost) == ("3.03", "1.65"), "the checkpoint is older than the attempt"
    assert decided(second.status, PREPARED, seconds=4360).status == second.status


def test_an_attempt_that_waits_for_its_retry_is_charged_once() -> None:
    status = decided(prepared().status, PREPARED, a_job(TRAIN, 1, RUNNING, A_POD)).status
    failed = replace(a_job(TRAIN, 1, FAILED, a_failed_pod(exit_code=43)), finished_at=NOON + timedelta(seconds=1800))
    waiting = decided(status, PREPARED, failed, seconds=1800)
    assert (waiting.start, cost_of(waiting).spent, cost_of(waiting).lost) == (None, "1.38", "1.38")
    retried = decided(waiting.status, PREPARED, failed, seconds=1900)
    assert (retried.start, cost_of(retried).spent, cost_of(retried).lost) == (Attempt(TRAIN, 2), "1.38", "1.38")


def test_a_job_that_somebody_deleted_is_charged_too() -> None:
    status = decided(prepared().status, PREPARED, a_job(TRAIN, 1, RUNNING, A_POD)).status
    gone = decided(status, PREPARED, seconds=1800)
    assert gone.start == Attempt(TRAIN, 2)
    assert (gone.status.active_seconds, cost_of(gone).spent, cost_of(gone).lost) == (1800, "1.38", "1.38")


def test_a_checkpoint_saved_while_it_was_stopped_loses_nothing() -> None:
    running = a_job(TRAIN, 1, RUNNING, A_POD)
    status = decided(prepared().status, PREPARED, running).status
    stopping = decided(status, PREPARED, running, seconds=1800, suspend=True).status
    assert stopping.cost is not None
    assert stopping.cost.lost == "1.38", "nobody has told of a checkpoint yet"
    saved = {"step": 60, "uri": "s3://out/c", "savedAt": (NOON + timedelta(seconds=1810)).isoformat()}
    report = a_report(TRAIN, 1, result={"stage": "train", "checkpoint": saved}, checkpoint=saved)
    told = decided(stopping, PREPARED, replace(running, deleted_at=NOON), seconds=1811, suspend=True,
                   seen={"report": report}).status  # fmt: skip
    assert told.cost is not None
    assert told.cost.lost == "0.00"


def test_each_attempt_is_charged_at_the_price_of_its_own_gpu() -> None:
    anywhere: dict[str, Any] = {"trainer": {}}
    fast, slow = {"node": {"pool": "h100"}}, {"node": {"pool": "other"}}
    status = decided(
        prepared(**anywhere).status, PREPARED, a_job(TRAIN, 1, RUNNING, A_POD), seen=fast, **anywhere
    ).status
    again = decided(status, PREPARED, taken_away(1, 0, 3600, saved=3600), seconds=3600, seen=fast, **anywhere).status
    pod = replace(A_POD, started_at=NOON + timedelta(seconds=3600))
    second = a_job(TRAIN, 2, RUNNING, pod)
    status = decided(again, PREPARED, second, seconds=3600, seen=slow, **anywhere).status
    cost = cost_of(decided(status, PREPARED, second, seconds=7200, seen=slow, **anywhere))
    assert (cost.gpu, cost.spent, cost.lost) == ("L4", "3.85", "0.00")


def test_tokens_are_spent_and_lost_by_steps() -> None:
    table = a_table(pricePerHour=None, pricePerMillionTokens="3.00")
    running = a_job(TRAIN, 1, RUNNING, A_POD)
    status = decided(prepared(settings=table).status, PREPARED, running, settings=table).status
    report = a_report(progress={"step": 80, "totalSteps": 90})
    status = decided(status, PREPARED, running, seconds=60, settings=table, seen={"report": report}).status
    assert status.cost is not None
    assert status.cost.spent == "26.40"
    lost = decided(status, PREPARED, taken_away(1, 0, 100, saved=50), seconds=100, settings=table)
    assert (cost_of(lost).spent, cost_of(lost).lost) == ("26.40", "6.60")
    pod = replace(A_POD, started_at=NOON + timedelta(seconds=200))
    second, report = a_job(TRAIN, 2, RUNNING, pod), a_report(TRAIN, 2, progress={"step": 90, "totalSteps": 90})
    cost = cost_of(decided(lost.status, PREPARED, second, seconds=300, settings=table, seen={"report": report}))
    assert (cost.spent, cost.lost) == ("36.30", "6.60")


def test_a_succeeded_run_has_lost_nothing() -> None:
    status = decided(prepared().status, PREPARED, a_job(TRAIN, 1, RUNNING, A_POD)).status
    done = decided(status, PREPARED, replace(DONE, finished_at=NOON + timedelta(seconds=3600)), seconds=3600)
    assert (done.status.phase, cost_of(done).spent, cost_of(done).lost) == (Phase.SUCCEEDED, "2.75", "0.00")


def stalled(status: FinetuneStatus) -> tuple[str, str, str]:
    found = condition_of(status, ConditionType.STALLED)
    assert found is not None
    return found.status.value, found.reason, found.message


def test_a_run_that_its_budget_cannot_pay_gets_no_gpu_until_it_is_raised() -> None:
    held = prepared(budget={"limit": "1.37"})
    assert (held.start, held.status.phase) == (None, Phase.SUSPENDED)
    words = "training will cost an estimated 1.38 EUR; spec.budget.limit is 1.37"
    assert stalled(held.status) == ("True", "BudgetExceeded", words)
    assert held.status.failure is not None
    assert held.status.failure.failure_class is FailureClass.BUDGET_EXCEEDED
    higher = decided(held.status, PREPARED, budget={"limit": "1.30"})
    assert "spec.budget.limit is 1.30" in stalled(higher.status)[2]
    raised = decided(held.status, PREPARED, budget={"limit": "1.38"})
    assert raised.start == Attempt(TRAIN, 1)
    assert stalled(raised.status)[0] == "False"
    assert decided(held.status, PREPARED).start == Attempt(TRAIN, 1), "a budget may be taken away"


def test_a_run_that_has_spent_its_budget_stops_and_goes_on_when_it_is_raised() -> None:
    budget: dict[str, Any] = {"budget": {"limit": "1.38"}}
    running = a_job(TRAIN, 1, RUNNING, A_POD)
    status = decided(prepared(**budget).status, PREPARED, running, **budget).status
    early = decided(status, PREPARED, running, seconds=1800, **budget)
    assert (early.stop, early.check_again) == ((), timedelta(seconds=7)), "1.375 of 1.38"
    stopping = decided(early.status, PREPARED, running, seconds=1807, **budget)
    assert (stopping.stop, stopping.start) == ((running,), None)
    words = "training has cost 1.38 EUR; spec.budget.limit is 1.38"
    assert stalled(stopping.status) == ("True", "BudgetExceeded", words)
    held = decided(stopping.status, PREPARED, seconds=1900, **budget)
    assert (held.start, held.status.phase) == (None, Phase.SUSPENDED)
    assert decided(held.status, PREPARED, seconds=2000, **budget).status == held.status
    assert decided(held.status, PREPARED, seconds=2000, budget={"limit": "1.50"}).start == Attempt(TRAIN, 2)


def test_a_stopped_pod_costs_until_it_is_gone() -> None:
    running = a_job(TRAIN, 1, RUNNING, A_POD)
    status = decided(prepared().status, PREPARED, running).status
    stopping = decided(status, PREPARED, running, seconds=1800, suspend=True).status
    gone = decided(stopping, PREPARED, seconds=1872, suspend=True)
    assert cost_of(gone).spent == "1.43", "0.02 hours more"
    assert gone.status.active_seconds == 1800, "its deadline counts training alone"
    assert decided(gone.status, PREPARED, seconds=9000, suspend=True).status == gone.status
    resumed = decided(gone.status, PREPARED, seconds=9000)
    assert (resumed.start, cost_of(resumed).spent) == (Attempt(TRAIN, 2), "1.43")
    unseen = decided(stopping, PREPARED, seconds=90_000)
    assert (unseen.start, cost_of(unseen).spent) == (Attempt(TRAIN, 2), "1.65"), "no longer than a pod may take"


def test_an_attempt_that_is_repeated_is_not_held_for_the_estimate() -> None:
    status = decided(prepared().status, PREPARED, a_job(TRAIN, 1, RUNNING, A_POD)).status
    again = decided(status, PREPARED, taken_away(1, 0, 60, saved=60), seconds=60, budget={"limit": "1.00"})
    assert again.start == Attempt(TRAIN, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus": [{"name": "A", "pricePerHour": 1}]}, "prices.currency is empty"),
        ({"prices": {"hostingPerHour": 1}}, "prices.currency is empty"),
        ({"gpus": [{"name": "A"}, {"name": "A"}]}, "gpus holds A more than once"),
        ({"gpus": [{"name": "A", "pricePerHour": 1, "pricePerMillionTokens": 1}], "prices": PRICES}, "leave one empty"),
        ({"gpus": [{"name": "A", "tokensPerSecond": 0}]}, "greater than 0"),
        ({"prices": {"currency": "euro"}}, "currency"),
        ({"prices": PRICES | {"overheadPercent": -1}}, "overheadPercent"),
    ],
)
def test_a_price_table_that_cannot_be_meant_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        some_settings(**changes)


@pytest.mark.parametrize(
    ("amount", "text"),
    [("0", "0.00"), ("0.005", "0.01"), ("0.0049", "0.00"), ("1.375", "1.38"), ("1234567.895", "1234567.90")],
)
def test_amounts_are_rounded_half_up(amount: str, text: str) -> None:
    assert money(Fraction(amount)) == text
