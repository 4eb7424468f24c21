"""The learning rate at each optimizer step: transformers' eight schedulers, with arguments that keep them different.

Factor at step k = 0, 1, …; x = (k - W) / (T - W), K = W, or 10000 without warmup. While k < W it is k / W; then
linear 1 - x, cosine ½(1 + cos πx), cosine_with_restarts two cycles of it, polynomial (1 - x)², constant_with_warmup 1,
inverse_sqrt √(K / (k - W + K)). Without warmup: constant 1; reduce_lr_on_plateau halves after each evaluation without
a new lowest loss.
"""

from collections.abc import Callable
from typing import Any

from finetune_api.training import Scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from transformers.optimization import (
    get_constant_schedule,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)

RESTART_CYCLES = 2
POLYNOMIAL_POWER = 2.0
"""With transformers' default of 1 the polynomial would be the linear schedule."""
PLATEAU_FACTOR = 0.5
FORMULA = "lr_lambdas"
"""Key of torch's schedulers for what computes the rate."""


class Schedule:
    """Sets the optimizer's rate; told of every step and every evaluation, each kind acts on what concerns it."""

    def __init__(self, inner: LRScheduler | ReduceLROnPlateau) -> None:
        self._inner = inner

    def after_step(self) -> None:
        """One optimizer step is done."""
        if not isinstance(self._inner, ReduceLROnPlateau):
            self._inner.step()

    def after_evaluation(self, loss: float) -> None:
        """The dev rows have `loss` now."""
        if isinstance(self._inner, ReduceLROnPlateau):
            self._inner.step(loss)

    def state(self) -> dict[str, Any]:
        """How far it is, as JSON; its formula is not part of it."""
        return {key: value for key, value in self._inner.state_dict().items() if key != FORMULA}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. The optimizer's rate is not touched."""
        self._inner.load_state_dict(self._inner.state_dict() | state)


def make_schedule(kind: Scheduler, optimizer: Optimizer, total_steps: int, warmup_steps: int) -> Schedule:
    """The schedule `kind` over `total_steps` (T) optimizer steps, of which `warmup_steps` (W < T) rise from 0."""
    makers: dict[Scheduler, Callable[[], LRScheduler | ReduceLROnPlateau]] = {
        Scheduler.LINEAR: lambda: get_linear_schedule_with_warmup(optimizer, warmup_steps, total_steps),
        Scheduler.COSINE: lambda: get_cosine_schedule_with_warmup(optimizer, warmup_steps, total_steps),
        Scheduler.COSINE_WITH_RESTARTS: lambda: get_cosine_with_hard_restarts_schedule_with_warmup(
            optimizer, warmup_steps, total_steps, num_cycles=RESTART_CYCLES
        ),
        Scheduler.POLYNOMIAL: lambda: get_polynomial_decay_schedule_with_warmup(
            optimizer, warmup_steps, total_steps, lr_end=0.0, power=POLYNOMIAL_POWER
        ),
        Scheduler.CONSTANT: lambda: get_constant_schedule(optimizer),
        Scheduler.CONSTANT_WITH_WARMUP: lambda: get_constant_schedule_with_warmup(optimizer, warmup_steps),
        Scheduler.INVERSE_SQRT: lambda: get_inverse_sqrt_schedule(optimizer, warmup_steps),
        Scheduler.REDUCE_LR_ON_PLATEAU: lambda: ReduceLROnPlateau(
            optimizer, factor=PLATEAU_FACTOR, patience=0, threshold=0.0, eps=0.0
        ),
    }
    return Schedule(makers[kind]())
