"""Acceptance case 10: the rate at each step."""

import pytest
import torch
from finetune_api.training import Scheduler
from finetune_trainer.schedule import make_schedule

FACTORS = {
    Scheduler.LINEAR: [0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
    Scheduler.COSINE: [0, 0.5, 1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381],
    Scheduler.COSINE_WITH_RESTARTS: [0, 0.5, 1, 0.8536, 0.5, 0.1464, 1, 0.8536, 0.5, 0.1464],
    Scheduler.POLYNOMIAL: [0, 0.5, 1, 0.7656, 0.5625, 0.3906, 0.25, 0.1406, 0.0625, 0.0156],
    Scheduler.INVERSE_SQRT: [0, 0.5, 1, 0.8165, 0.7071, 0.6325, 0.5774, 0.5345, 0.5, 0.4714],
    Scheduler.CONSTANT_WITH_WARMUP: [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1],
    Scheduler.CONSTANT: [1] * 10,
    Scheduler.REDUCE_LR_ON_PLATEAU: [1] * 10,
}


def an_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


@pytest.mark.parametrize("kind", list(Scheduler))
def test_each_scheduler_follows_its_formula(kind: Scheduler) -> None:
    optimizer = an_optimizer()
    schedule = make_schedule(kind, optimizer, total_steps=10, warmup_steps=2)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_step()
    assert rates == pytest.approx(FACTORS[kind], abs=5e-5)


def test_inverse_sqrt_without_warmup_starts_at_the_full_rate_and_falls() -> None:
    optimizer = an_optimizer()
    schedule = make_schedule(Scheduler.INVERSE_SQRT, optimizer, total_steps=10, warmup_steps=0)
    first = optimizer.param_groups[0]["lr"]
    optimizer.step()
    schedule.after_step()
    assert (first, optimizer.param_groups[0]["lr"]) == pytest.approx((1.0, (10000 / 10001) ** 0.5))


def test_the_plateau_halves_the_rate_after_each_evaluation_without_a_new_lowest_loss() -> None:
    optimizer = an_optimizer()
    schedule = make_schedule(Scheduler.REDUCE_LR_ON_PLATEAU, optimizer, total_steps=10, warmup_steps=0)
    rates = []
    for loss in (2.0, 1.0, 1.0, 1.5, 0.9999999):
        schedule.after_evaluation(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 0.5, 0.25, 0.25]


def test_the_plateau_falls_below_any_small_rate() -> None:
    optimizer = an_optimizer()
    optimizer.param_groups[0]["lr"] = 1e-9
    schedule = make_schedule(Scheduler.REDUCE_LR_ON_PLATEAU, optimizer, total_steps=10, warmup_steps=0)
    schedule.after_evaluation(1.0)
    schedule.after_evaluation(1.0)
    assert optimizer.param_groups[0]["lr"] == 5e-10
