"""What training changes can be taken out and put back, for every optimizer and every schedule, bit for bit."""

import json
from typing import cast

import pytest
import torch
from finetune_api.training import Optimizer, Scheduler
from finetune_trainer.loss import LossModel
from finetune_trainer.optimizer import make_optimizer, trained_by_name
from finetune_trainer.schedule import make_schedule
from finetune_trainer.trainee import Trainee, TraineeState
from torch import Tensor, nn

ROWS, WIDTH = 64, 128
"""Large enough for 8-bit optimizer state."""


def a_trainee(optimizer: Optimizer = Optimizer.ADAMW, scheduler: Scheduler = Scheduler.LINEAR) -> Trainee:
    model = nn.Linear(WIDTH, ROWS)
    parameters = trained_by_name(model)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    made = make_optimizer(optimizer, parameters.values(), 0.01, weight_decay=0.1)
    schedule = make_schedule(scheduler, made, total_steps=10, warmup_steps=2)
    return Trainee(cast(LossModel, model), parameters, made, schedule, torch.device("cpu"))


def step(trainee: Trainee, times: int) -> list[float]:
    """Steps along random gradients, a dev loss after each; returns the rates."""
    rates = []
    for _ in range(times):
        for parameter in trainee.parameters.values():
            parameter.grad = torch.randn_like(parameter)
        rates.append(trainee.step(max_grad_norm=1.0)[1])
        trainee.schedule.after_evaluation(1.0)
    return rates


def carried(state: TraineeState) -> TraineeState:
    """As it comes back from a file."""
    return TraineeState(state.weights, state.optimizer, json.loads(json.dumps(state.numbers)))


def weights(trainee: Trainee) -> list[Tensor]:
    return [parameter.detach() for parameter in trainee.parameters.values()]


def assert_goes_on(optimizer: Optimizer, scheduler: Scheduler) -> None:
    torch.manual_seed(0)
    whole = a_trainee(optimizer, scheduler)
    step(whole, 3)
    state = carried(whole.state())
    rates = step(whole, 4)
    torch.manual_seed(99)
    again = a_trainee(optimizer, scheduler)
    again.restore(state)
    assert step(again, 4) == rates
    assert all(torch.equal(one, other) for one, other in zip(weights(whole), weights(again), strict=True))


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_every_optimizer_goes_on_as_if_nothing_had_happened(optimizer: Optimizer) -> None:
    assert_goes_on(optimizer, Scheduler.LINEAR)


@pytest.mark.parametrize("scheduler", list(Scheduler))
def test_every_schedule_goes_on_as_if_nothing_had_happened(scheduler: Scheduler) -> None:
    assert_goes_on(Optimizer.ADAMW, scheduler)


def test_a_state_does_not_change_with_the_steps_after_it() -> None:
    trainee = a_trainee()
    step(trainee, 1)
    state = trainee.state()
    before = {key: value.clone() for key, value in (state.weights | state.optimizer).items()}
    step(trainee, 3)
    assert all(torch.equal(before[key], value) for key, value in (state.weights | state.optimizer).items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_no_number_is_seen(value: float) -> None:
    trainee = a_trainee()
    assert trainee.is_finite()
    with torch.no_grad():
        trainee.parameters["bias"][3] = value
    assert not trainee.is_finite()
