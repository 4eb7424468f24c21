"""What a run costs: the estimate, what is spent and what of it was lost. Exact fractions, rounded to be shown. Pure.

An attempt is charged at the price of the GPU that it runs on, from the start of its pods to their end; the ledger in
the status keeps what the attempts before it came to.
"""

import calendar
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from math import floor

from finetune_api.findings import ArtifactStatus
from finetune_api.money import CostLedger, CostStatus, HostingCost, StorageCost
from finetune_api.names import Stage, StageState
from finetune_api.status import FinetuneStatus, StageStatus

from finetune_operator import gpus, holding, stages
from finetune_operator.prices import GpuKind, Prices
from finetune_operator.steps import Run

AMOUNTS_AGE = timedelta(seconds=60)
"""How old the amounts of a run that trains may grow while nothing else is written."""

HOURS_PER_MONTH = 720

LEDGER_PLACES = 8
"""Decimal places that the ledger keeps: after a thousand attempts the cents are still right."""

LARGEST_AMOUNT = Fraction(10**15)
"""No run costs as much; only a trainer that tells nonsense of its rows and steps leads there."""

ENDED_IN_VAIN = (StageState.FAILED, StageState.STOPPED)
"""States of an attempt that has ended without an artifact."""


@dataclass(frozen=True)
class Use:
    """What prices count."""

    gpu_seconds: Fraction = Fraction(0)
    tokens: Fraction = Fraction(0)


@dataclass(frozen=True)
class Rate:
    """The price of training on one kind of GPU, overhead included."""

    per_gpu_hour: Fraction
    per_million_tokens: Fraction

    def of(self, use: Use) -> Fraction:
        """What the use costs."""
        return use.gpu_seconds * self.per_gpu_hour / 3600 + use.tokens * self.per_million_tokens / 10**6


@dataclass(frozen=True)
class Bill:
    """What training costs, exactly."""

    rate: Rate
    spent: Fraction
    lost: Fraction
    """The part of `spent` that no checkpoint kept."""
    estimated: Fraction | None
    """Of the whole training without interruption; None where nobody knows how fast the GPU is."""


def bill(run: Run) -> Bill | None:
    """What the run has cost and will cost; None as long as its GPU has no price."""
    kind = gpus.kind_of(run.finetune, run.observed, run.settings)
    if kind is None or not kind.is_priced or run.status.data is None:
        return None
    rate, ledger = _rate(kind, run.settings.prices), _ledger(run.status)
    used, in_vain = _use_of_attempt(run), _lost_of_attempt(run)
    return Bill(
        rate,
        spent=Fraction(ledger.spent) + rate.of(used),
        lost=Fraction(ledger.lost) + rate.of(in_vain),
        estimated=_estimated(run, kind, rate),
    )


def with_cost(run: Run, status: FinetuneStatus) -> FinetuneStatus:
    """The status that a pass came to, with its cost: reckoned whenever something has changed, else once a minute."""
    status = holding.noted(run, status)
    if status.data is None or (status == run.finetune.status and not _is_old(status, run.now)):
        return status
    return status.model_copy(update={"cost": _told(Run(run.finetune, run.observed, run.settings, run.now, status))})


def closed(run: Run) -> FinetuneStatus:
    """The status with the newest attempt entered in the ledger, before the next one takes its place."""
    entry, current = stages.find(run.status, Stage.TRAIN), bill(run)
    if entry is None or entry.state not in ENDED_IN_VAIN or current is None:
        return run.status
    ledger = CostLedger(
        active_seconds=run.status.active_seconds,
        step=run.status.checkpoint.step if run.status.checkpoint else 0,
        spent=_exact(current.spent),
        lost=_exact(current.lost),
    )
    cost = (run.status.cost or CostStatus()).model_copy(update={"ledger": ledger})
    return run.status.model_copy(update={"cost": cost})


def trained_tokens(status: FinetuneStatus) -> Fraction:
    """Tokens that the whole training reads: those of the train rows, as often as they are gone through."""
    data, effective = status.data, status.effective_hyperparameters
    if data is None or effective is None or not effective.epochs:
        return Fraction(0)
    if not (effective.max_steps and effective.total_steps):
        return data.tokens * Fraction(str(effective.epochs))
    rows = (effective.train_batch_size or 1) * (effective.gradient_accumulation_steps or 1) * (effective.devices or 1)
    steps_per_epoch = max(1, -(-data.sequences // rows))
    return data.tokens * Fraction(effective.total_steps, steps_per_epoch)


def money(amount: Fraction) -> str:
    """The amount with 2 places, half up."""
    cents = floor(min(amount, LARGEST_AMOUNT) * 100 + Fraction(1, 2))
    return f"{cents // 100}.{cents % 100:02d}"


def gpu_count(run: Run) -> int:
    """GPUs of a whole attempt."""
    return run.finetune.spec.trainer.nodes * run.finetune.spec.trainer.gpus_per_node


def _rate(kind: GpuKind, prices: Prices) -> Rate:
    factor = 1 + Fraction(prices.overhead_percent) / 100
    return Rate(
        per_gpu_hour=Fraction(kind.price_per_hour or 0) * factor,
        per_million_tokens=Fraction(kind.price_per_million_tokens or 0) * factor,
    )


def _ledger(status: FinetuneStatus) -> CostLedger:
    return (status.cost and status.cost.ledger) or CostLedger()


def _use_of_attempt(run: Run) -> Use:
    """What the newest attempt has used: all that is not in the ledger yet."""
    ledger, entry = _ledger(run.status), stages.find(run.status, Stage.TRAIN)
    is_pending = entry is None or entry.state is StageState.PENDING  # It still shows the steps of the one before.
    steps = 0 if is_pending or run.status.progress is None else run.status.progress.step - ledger.step
    return Use(Fraction(holding.gpu_seconds(run, ledger.active_seconds)), _tokens_of(run.status, steps))


def _lost_of_attempt(run: Run) -> Use:
    """The part of it that no checkpoint kept: nothing while it runs, or where it has come to an artifact."""
    entry, status = stages.find(run.status, Stage.TRAIN), run.status
    if entry is None or entry.state not in ENDED_IN_VAIN:
        return Use()
    used = max(0, status.active_seconds - _ledger(status).active_seconds)
    steps = status.progress.step - (status.checkpoint.step if status.checkpoint else 0) if status.progress else 0
    return Use(Fraction(min(used, _seconds_unsaved(entry, status)) * gpu_count(run)), _tokens_of(status, steps))


def _seconds_unsaved(entry: StageStatus, status: FinetuneStatus) -> int:
    """How long an attempt that has ended had trained since its start, or since the newest checkpoint."""
    if entry.started_at is None or entry.finished_at is None:
        return 0
    saved = max(entry.started_at, status.checkpoint.saved_at) if status.checkpoint else entry.started_at
    return max(0, int((entry.finished_at - saved).total_seconds()))


def _tokens_of(status: FinetuneStatus, steps: int) -> Fraction:
    """Tokens of so many optimizer steps."""
    total = status.progress.total_steps if status.progress else 0
    return trained_tokens(status) * Fraction(max(0, steps), total) if total else Fraction(0)


def _estimated(run: Run, kind: GpuKind, rate: Rate) -> Fraction | None:
    tokens, speed = trained_tokens(run.status), kind.tokens_per_second
    if kind.price_per_million_tokens is not None:
        return rate.of(Use(tokens=tokens))
    if speed is not None:
        return rate.of(Use(tokens / Fraction(speed)))
    return rate.of(Use(Fraction(run.status.estimate.gpu_seconds))) if run.status.estimate else None


def _is_old(status: FinetuneStatus, now: datetime) -> bool:
    entry, cost = stages.find(status, Stage.TRAIN), status.cost
    if cost is None or cost.spent is None or entry is None or entry.state is not StageState.RUNNING:
        return False
    return cost.as_of is None or now - cost.as_of >= AMOUNTS_AGE


def _told(run: Run) -> CostStatus:
    prices, ledger = run.settings.prices, _ledger(run.status)
    kept = None if ledger == CostLedger() else ledger
    if not prices.currency:
        return CostStatus(warning="; ".join(_warnings(run, None, None)), ledger=kept)
    kind, current = gpus.kind_of(run.finetune, run.observed, run.settings), bill(run)
    return CostStatus(
        currency=prices.currency,
        gpu=kind.name if kind else None,
        estimated=None if current is None or current.estimated is None else money(current.estimated),
        spent=money(current.spent) if current else None,
        lost=money(current.lost) if current else None,
        inference=_shown(prices.inference_per_million_tokens),
        hosting=_hosting(prices.hosting_per_hour, run.now),
        storage=_storage(prices.storage_per_gib_month, run.status.artifact),
        as_of=run.now,
        warning="; ".join(_warnings(run, kind, current)) or None,
        ledger=kept,
    )


def _shown(price: Decimal | None) -> str | None:
    return None if price is None else money(Fraction(price))


def _hosting(per_hour: Decimal | None, now: datetime) -> HostingCost | None:
    if per_hour is None:
        return None
    price = Fraction(per_hour)
    return HostingCost(
        per_hour=money(price),
        per_month=money(price * HOURS_PER_MONTH),
        current_month=money(price * _seconds_left_of_month(now) / 3600),
    )


def _seconds_left_of_month(now: datetime) -> int:
    """`now` is in UTC."""
    days = calendar.monthrange(now.year, now.month)[1]
    start = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return int((start + timedelta(days=days) - now).total_seconds())


def _storage(per_gib_month: Decimal | None, artifact: ArtifactStatus | None) -> StorageCost | None:
    if per_gib_month is None:
        return None
    price = Fraction(per_gib_month)
    whole = None if artifact is None else money(price * Fraction(artifact.bytes, 2**30))
    return StorageCost(per_gib_month=money(price), per_month=whole)


def _warnings(run: Run, kind: GpuKind | None, current: Bill | None) -> Iterator[str]:
    """Why amounts are absent."""
    if current is None:
        yield f"there is no price: {_why_no_price(run, kind)}"
        if run.finetune.spec.budget:
            yield "spec.budget bounds nothing"
    elif current.estimated is None and kind:
        yield f"there is no estimate: how fast {kind.name} trains is not known (settings.gpus[].tokensPerSecond)"


def _why_no_price(run: Run, kind: GpuKind | None) -> str:
    if not run.settings.prices.currency:
        return "whoever runs the operator has set none (settings.prices, settings.gpus)"
    if not run.finetune.spec.trainer.gpus_per_node:
        return "only GPUs have one, and trainer.gpusPerNode is 0"
    if kind is None:
        return "which GPU of settings.gpus it trains on is not known; trainer.nodeSelector may name one"
    return f"settings.gpus has none for GPU {kind.name}"


def _exact(amount: Fraction) -> str:
    """The amount as the ledger keeps it."""
    units = floor(min(amount, LARGEST_AMOUNT) * 10**LEDGER_PLACES + Fraction(1, 2))
    return f"{units // 10**LEDGER_PLACES}.{units % 10**LEDGER_PLACES:0{LEDGER_PLACES}d}"
