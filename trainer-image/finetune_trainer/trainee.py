"""What training changes: weights, optimizer, schedule and random state. One step, and all of it in and out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from finetune_trainer.loss import LossModel
from finetune_trainer.optimizer import clip_gradients, place_state
from finetune_trainer.parts import local, part_of, whole_copy
from finetune_trainer.random_state import random_state, restore_random_state
from finetune_trainer.schedule import Schedule

SEPARATOR = "|"
"""Between a parameter's name and the name of what the optimizer keeps for it; no module path holds one."""


@dataclass(frozen=True)
class TraineeState:
    """Everything that another process needs to go on as if nothing had happened."""

    weights: dict[str, Tensor]
    """The trained parameters in fp32, by name, in main memory."""
    optimizer: dict[str, Tensor]
    """What the optimizer keeps, by `PARAMETER|KEY`."""
    numbers: dict[str, Any]
    """The rest, as JSON."""


@dataclass(frozen=True)
class Trainee:
    """A model in training."""

    model: LossModel
    parameters: dict[str, Parameter]
    """The trained ones, by name."""
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    device: torch.device

    def step(self, max_grad_norm: float) -> tuple[Tensor, float]:
        """One optimizer step along the gradients there are. Returns their norm before clipping, and the rate."""
        norm = clip_gradients(list(self.parameters.values()), max_grad_norm)
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.after_step()
        return norm, rate

    def is_finite(self) -> bool:
        """Whether every trained weight is a number. Here the host waits for the device."""
        with torch.no_grad():
            mine = [local(weight) for weight in self.parameters.values()]
            return bool(torch.stack([weight.isfinite().all() for weight in mine]).all())

    def state(self, kept: bool = True) -> TraineeState:
        """A copy, which the next steps do not change; ranks that hold parts make it together, for who has it `kept`."""
        found = {
            f"{name}{SEPARATOR}{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
        return TraineeState(
            weights={name: whole_copy(parameter, kept) for name, parameter in self.parameters.items()},
            optimizer={key: whole_copy(value, kept) for key, value in tensors.items()},
            numbers={
                "optimizer": {key: value for key, value in found.items() if key not in tensors},
                "rates": [group["lr"] for group in self.optimizer.param_groups],
                "schedule": self.schedule.state(),
                "random": random_state(self.device),
            },
        )

    def restore(self, state: TraineeState) -> None:
        """Put everything back that `state` gave. Raises KeyError or RuntimeError where it is of another model."""
        self.restore_weights(state.weights)
        self.optimizer.state.clear()
        for key, value in (state.optimizer | state.numbers["optimizer"]).items():
            name, _, kept = key.rpartition(SEPARATOR)
            parameter = self.parameters[name]
            if isinstance(value, Tensor):
                value = part_of(place_state(self.optimizer, parameter, value), parameter)
            self.optimizer.state[parameter][kept] = value
        for group, rate in zip(self.optimizer.param_groups, state.numbers["rates"], strict=True):
            group["lr"] = rate
        self.schedule.restore(state.numbers["schedule"])
        restore_random_state(state.numbers["random"], self.device)

    @torch.no_grad()
    def restore_weights(self, weights: dict[str, Tensor]) -> None:
        """Put back the weights alone."""
        for name, parameter in self.parameters.items():
            parameter.copy_(part_of(weights[name], parameter))
