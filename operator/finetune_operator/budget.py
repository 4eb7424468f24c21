"""What a run may cost: refused before a GPU is asked for, or stopped with a checkpoint once it is spent. Pure."""

from datetime import timedelta
from fractions import Fraction

from finetune_api.names import FailureClass, Stage
from finetune_api.reasons import Reason
from finetune_api.status import Failure

from finetune_operator import cost, stages
from finetune_operator.attempts import a_failure
from finetune_operator.steps import Run


def exceeded(run: Run) -> Failure | None:
    """Why the run may not train (on): its budget is spent, or would not last. None without budget or price."""
    budget, bill = run.finetune.spec.budget, cost.bill(run)
    if budget is None or bill is None:
        return None
    limit, currency = Fraction(budget.limit), run.settings.prices.currency
    bound = f"spec.budget.limit is {budget.limit}"
    if bill.spent >= limit:
        return _failure(f"training has cost {cost.money(bill.spent)} {currency}; {bound}")
    if bill.estimated is not None and bill.estimated > limit and not _has_trained(run):
        return _failure(f"training will cost an estimated {cost.money(bill.estimated)} {currency}; {bound}")
    return None


def time_left(run: Run) -> timedelta | None:
    """How long train pods may still run, at least a second; None where time costs nothing or nobody bounds it."""
    budget, bill = run.finetune.spec.budget, cost.bill(run)
    if budget is None or bill is None:
        return None
    per_second = bill.rate.of(cost.Use(gpu_seconds=Fraction(cost.gpu_count(run))))
    if not per_second:
        return None
    return timedelta(seconds=max(1, -(-(Fraction(budget.limit) - bill.spent) // per_second)))


def _has_trained(run: Run) -> bool:
    """Whether a train pod has ever started."""
    entry = stages.find(run.status, Stage.TRAIN)
    return run.status.active_seconds > 0 or (entry is not None and entry.started_at is not None)


def _failure(message: str) -> Failure:
    return a_failure(FailureClass.BUDGET_EXCEEDED, Reason.BUDGET_EXCEEDED, message)
