"""What each optimizer and its settings do to a weight."""

import math

import pytest
import torch
from finetune_api.training import Optimizer
from finetune_trainer.optimizer import clip_gradients, make_optimizer
from torch.nn import Parameter

RATE = 0.1


def one_step(kind: Optimizer, gradient: float, weight_decay: float = 0.0) -> float:
    """Where a matrix of 2.0 ends after one step."""
    weight = Parameter(torch.full((2, 2), 2.0))
    weight.grad = torch.full((2, 2), gradient)
    make_optimizer(kind, [weight], RATE, weight_decay).step()
    return float(weight.detach()[0, 0])


ADAMS = [Optimizer.ADAMW, Optimizer.ADAM, Optimizer.ADAMW8BIT, Optimizer.PAGED_ADAMW8BIT]


@pytest.mark.parametrize("kind", ADAMS)
def test_adam_moves_by_the_rate_at_first_whatever_the_gradient(kind: Optimizer) -> None:
    assert one_step(kind, gradient=0.3) == pytest.approx(2.0 - RATE, abs=1e-5)


def test_sgd_moves_by_rate_times_gradient() -> None:
    assert one_step(Optimizer.SGD, gradient=0.3) == pytest.approx(2.0 - RATE * 0.3)


def test_adafactor_moves_by_the_rate_that_was_asked_for() -> None:
    assert one_step(Optimizer.ADAFACTOR, gradient=0.3) == pytest.approx(2.0 - RATE, rel=1e-3)


def test_adamw_decays_beside_the_gradient_and_adam_inside_it() -> None:
    decayed = 2.0 * (1 - RATE * 0.5)
    assert one_step(Optimizer.ADAMW, gradient=0.0, weight_decay=0.5) == pytest.approx(decayed)
    assert one_step(Optimizer.ADAM, gradient=0.0, weight_decay=0.5) == pytest.approx(2.0 - RATE, abs=1e-5)


def run_of(kind: Optimizer, steps: int) -> torch.Tensor:
    """A matrix that is large enough for 8-bit state, after so many steps towards another."""
    generator = torch.Generator().manual_seed(0)
    weight, goal = (torch.randn(64, 128, generator=generator) for _ in range(2))
    parameter = Parameter(weight)
    optimizer = make_optimizer(kind, [parameter], 0.01, weight_decay=0.1)
    for _ in range(steps):
        parameter.grad = parameter.detach() - goal
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("kind", [Optimizer.ADAMW8BIT, Optimizer.PAGED_ADAMW8BIT])
def test_adamw_with_8_bit_state_ends_near_adamw_and_not_in_it(kind: Optimizer) -> None:
    exact, rounded, start = run_of(Optimizer.ADAMW, 30), run_of(kind, 30), run_of(Optimizer.ADAMW, 0)
    distance = float((exact - rounded).abs().mean() / (exact - start).abs().mean())
    assert 0 < distance < 0.05


@pytest.mark.parametrize("kind", [Optimizer.ADAMW8BIT, Optimizer.PAGED_ADAMW8BIT])
def test_the_state_of_large_matrices_is_in_8_bits(kind: Optimizer) -> None:
    parameter = Parameter(torch.zeros(64, 64))
    parameter.grad = torch.ones(64, 64)
    optimizer = make_optimizer(kind, [parameter], RATE, 0.0)
    optimizer.step()
    state = optimizer.state[parameter]
    assert {state["state1"].dtype, state["state2"].dtype} == {torch.uint8}


@pytest.mark.parametrize("kind", list(Optimizer))
def test_biases_and_norms_do_not_decay(kind: Optimizer) -> None:
    vector, matrix = Parameter(torch.ones(3)), Parameter(torch.ones(3, 3))
    for parameter in (vector, matrix):
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(kind, [vector, matrix], RATE, weight_decay=0.5).step()
    assert torch.equal(vector.detach(), torch.ones(3))
    assert bool((matrix.detach() < 1).all())


def test_clipping_scales_all_gradients_to_the_common_norm() -> None:
    parameters = [Parameter(torch.zeros(1)), Parameter(torch.zeros(1))]
    for parameter, gradient in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([gradient])
    assert float(clip_gradients(parameters, 1.0)) == 5.0
    assert [float(p.grad) for p in parameters if p.grad is not None] == pytest.approx([0.6, 0.8], rel=1e-5)


def test_clipping_off_leaves_gradients_and_still_tells_the_norm() -> None:
    parameter = Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([7.0])
    assert float(clip_gradients([parameter], 0.0)) == 7.0
    assert float(parameter.grad) == 7.0


def test_a_gradient_that_is_no_number_makes_the_norm_none() -> None:
    parameter = Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([math.nan])
    assert math.isnan(float(clip_gradients([parameter], 1.0)))
