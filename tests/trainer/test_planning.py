"""The plan of a run: what it says, what it changes, and what it never changes."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.names import FailureClass, Stage
from finetune_api.training import GradientCheckpointing
from finetune_trainer.compute import Compute
from finetune_trainer.errors import RunError
from finetune_trainer.fit import fit
from finetune_trainer.log import Log
from finetune_trainer.measure import Engine, make_engine
from finetune_trainer.planning import Plan, Planner
from finetune_trainer.report import Reporter
from torch import Tensor, nn

from tests.trainer.decoders import a_decoder
from tests.trainer.runs import a_run
from tests.trainer.test_fit import ROWS, SETTINGS, losses

CPU = Compute(torch.device("cpu"), torch.float32)


def a_planner(rung: int = 0, memory: int | None = None, wanted: str = "auto", engine: Engine | None = None) -> Planner:
    """For a tiny Llama on ten rows, four a step."""
    run = a_run(Path("unused"), "hf://a/b", [{"name": "d", "uri": "s3://b/d.jsonl"}])
    asked = run.training.hyperparameters.model_copy(update={"gradient_checkpointing": GradientCheckpointing(wanted)})
    training = run.training.model_copy(update={"hyperparameters": asked})
    run = run.model_copy(update={"training": training, "memory_rung": rung, "memory_bytes": memory})
    return Planner(run, engine or make_engine(a_decoder(), CPU, True, pytest.fail), ROWS, SETTINGS)


def planned(rung: int = 0, wanted: str = "auto") -> tuple[Plan, list[float]]:
    """The plan, and the losses of training by it."""
    planner = a_planner(rung, wanted=wanted)
    plan, engine = planner.plan(lambda lines: None), planner.engine
    settings = replace(SETTINGS, tokens_per_batch=plan.status.micro_batch_tokens)
    report = Reporter(planner.spec, Stage.TRAIN, Log(stream=io.StringIO()))
    with engine.attending(), plan.working(engine):
        return plan, losses(fit(engine.loss, ROWS, settings, engine.packed, CPU.device, lambda _: 0.0, report))


def test_the_plan_has_numbers_and_reasons() -> None:
    told: list[str] = []
    plan = a_planner(memory=2**40).plan(told.extend)
    assert (plan.status.precision, plan.status.attention) == ("float32", "packed")
    assert plan.status.micro_batch_tokens == 12 + 10 + 9 + 8
    assert plan.status.estimated_bytes is not None
    assert plan.status.available_bytes is not None
    assert 0 < plan.status.estimated_bytes < plan.status.available_bytes < 2**40
    assert set(plan.reasons) <= set(plan.to_json())
    assert [line.split()[1] for line in told] == list(plan.status.to_json())
    assert "weights" in plan.reasons["estimatedBytes"]


@pytest.mark.parametrize(("rung", "tokens", "checkpointed"), [(1, 20, False), (2, 12, True)])
def test_an_attempt_after_one_without_memory_is_smaller_and_learns_the_same(
    rung: int, tokens: int, checkpointed: bool
) -> None:
    (before, wanted), (after, found) = planned(), planned(rung)
    status = after.status
    assert (status.memory_rung, status.micro_batch_tokens) == (rung, tokens)
    assert status.activation_checkpointing is checkpointed
    assert status.estimated_bytes is not None
    assert before.status.estimated_bytes is not None
    assert status.estimated_bytes < before.status.estimated_bytes
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(("wanted", "checkpointed"), [("always", True), ("never", False)])
def test_what_the_user_asks_for_is_done_on_every_rung_and_learns_the_same(wanted: str, checkpointed: bool) -> None:
    _, auto = planned()
    for rung in (0, 1):
        plan, found = planned(rung, wanted)
        assert plan.status.activation_checkpointing is checkpointed
        assert found == pytest.approx(auto, rel=1e-4)


def test_a_row_that_does_not_fit_ends_the_run_before_it_trains() -> None:
    with pytest.raises(RunError) as caught:
        a_planner(memory=1000).plan(lambda lines: None)
    error = caught.value
    assert (error.failure_class, error.reason) == (FailureClass.INVALID_CONFIG, "NotEnoughMemory")
    assert "trainer.memory" in error.message
    assert "or raise trainer.memory." in error.remedy


def test_a_ladder_that_has_ended_ends_the_run() -> None:
    with pytest.raises(RunError, match="no smaller way to train") as caught:
        a_planner(rung=9).plan(lambda lines: None)
    assert caught.value.reason == "NotEnoughMemory"


class Choosy(nn.Module):
    """A loss that looks at its numbers, as some routers do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, batch: object) -> Tensor:
        return self.weight.sum() * (2.0 if self.weight[0].item() > 0 else 1.0)


def test_a_model_that_cannot_be_estimated_is_planned_without() -> None:
    loss: Any = Choosy()
    told: list[str] = []
    engine = replace(make_engine(a_decoder(), CPU, False, pytest.fail), loss=loss)
    plan = a_planner(engine=engine).plan(told.extend)
    assert plan.status.estimated_bytes is None
    assert plan.status.micro_batch_tokens == 4 * 12
    assert any("not estimated" in line for line in told)


def test_a_model_that_cannot_compute_activations_again_says_so() -> None:
    planner = a_planner(wanted="always")
    planner.engine.inner.supports_gradient_checkpointing = False
    with pytest.raises(RunError) as caught:
        planner.plan(lambda lines: None)
    assert caught.value.reason == "CheckpointingUnsupported"
    assert not a_planner(rung=1, wanted="never").plan(lambda lines: None).status.activation_checkpointing
