"""Layers compiled one by one: the same training, nothing compiled anew for other lengths, no trace left behind."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from finetune_api.training import Lora
from finetune_trainer import compiling, planning
from finetune_trainer.adapter import attach_adapter
from finetune_trainer.attention import ROW_ATTENTION, row_attention, rows_attended
from finetune_trainer.batch import Batch
from finetune_trainer.compiling import hindrance, layers_compiled
from finetune_trainer.layers import layers_of
from finetune_trainer.loss import LossModel
from finetune_trainer.model import bare
from finetune_trainer.pack import packed_batch
from finetune_trainer.plan import COMPILE_SECONDS
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from transformers import AttentionInterface, PreTrainedModel

from tests.trainer.decoders import a_decoder, some_rows
from tests.trainer.test_planning import a_planner

# While it traces, torch's compiler reads attributes that warn of being read.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore:`is_gradient_checkpointing`")

BATCHES = [
    packed_batch(some_rows(lengths), range(len(lengths)))
    for lengths in ((9, 4, 12), (7, 5, 5, 3), (20,), (30, 2, 2, 2, 2))
]
"""Other lengths, another number of rows and of tokens each time."""

Graphs = list[torch.fx.GraphModule]


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    """What was compiled so far."""
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


def counting(graphs: Graphs) -> Callable[..., Any]:
    """A compiler that takes each graph as it is."""

    def take(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return take


def trained(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """The loss, and the gradient of each trained parameter."""
    model.zero_grad()
    loss = LossModel(model, plain_head=True)(batch)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def test_loss_and_gradients_are_the_same_and_other_lengths_compile_nothing_anew(graphs: Graphs) -> None:
    model = bare(attach_adapter(a_decoder(), Lora(rank=4), seed=0))
    with rows_attended(model):
        wanted = [trained(model, batch) for batch in BATCHES]
        with layers_compiled(model, True, counting(graphs)):
            found, made = [], []
            for batch in BATCHES:
                found.append(trained(model, batch))
                made.append(len(graphs))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    # The first layer's input needs no gradient, which makes it another graph than the second's.
    assert made == [7] * len(BATCHES)


def test_a_compiled_model_has_the_names_that_it_had_and_is_as_before_afterwards(graphs: Graphs) -> None:
    model = a_decoder()
    names = list(model.state_dict())
    with layers_compiled(model, True, counting(graphs)):
        assert list(model.state_dict()) == names
    with rows_attended(model):
        trained(model, BATCHES[0])
    assert graphs == []
    assert AttentionInterface._global_mapping[ROW_ATTENTION] is row_attention


def test_what_the_compiler_cannot_do_runs_as_it_is(graphs: Graphs) -> None:
    model, tried = a_decoder(), []

    def broken(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        tried.append(graph)
        raise RuntimeError("no such operator")

    with rows_attended(model):
        wanted = trained(model, BATCHES[0])
        with layers_compiled(model, True, broken):
            found = trained(model, BATCHES[0])
    assert tried
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def with_fused_experts(model: PreTrainedModel) -> PreTrainedModel:
    register_parametrization(layers_of(model)[0].mlp.gate_proj, "weight", nn.Identity())  # type: ignore[union-attr,arg-type]
    return model


def quantised(model: PreTrainedModel) -> PreTrainedModel:
    import bitsandbytes

    model.extra = bitsandbytes.nn.Linear8bitLt(8, 8)
    return model


WAY: dict[str, bool] = {"by_rows": True, "recomputed": False, "sharded": False}


@pytest.mark.parametrize(
    ("changed", "way", "why"),
    [
        (None, {}, None),
        (None, {"by_rows": False}, "row attention"),
        (None, {"recomputed": True}, "activations again"),
        (None, {"sharded": True}, "in shards"),
        (quantised, {}, "quantised"),
        (with_fused_experts, {}, "fused experts"),
    ],
)
def test_what_stands_in_the_way_is_said(
    monkeypatch: pytest.MonkeyPatch, changed: Callable[..., Any] | None, way: dict[str, bool], why: str | None
) -> None:
    model = a_decoder()
    assert hindrance(model, **WAY) == "layers are compiled on a GPU alone"
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    found = hindrance(changed(model) if changed else model, **WAY | way)
    assert found is None if why is None else found is not None and why in found
    monkeypatch.setattr(compiling, "C_COMPILERS", ("no-such-compiler",))
    assert hindrance(a_decoder(), **WAY) == "this image has no C compiler"


@pytest.mark.parametrize(("steps_done", "compiled"), [(0, True), (5, False)])
def test_the_plan_compiles_where_enough_training_is_left(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch, steps_done: int, compiled: bool
) -> None:
    """Of six steps; the device is so slow that a step takes four times as long as compiling."""
    monkeypatch.setattr(planning, "hindrance", lambda *_: None)
    planner = a_planner()
    slow = planner._operations(1) / (4 * COMPILE_SECONDS) / 0.4
    planner = replace(planner, steps_done=lambda: steps_done, speed=lambda _: slow)
    plan = planner.plan(lambda lines: None)
    assert plan.status.compiled is compiled
    assert f"{8 * (6 - steps_done)} min of training are left" in plan.reasons["compiled"]
    monkeypatch.setattr(compiling, "COMPILER", counting(graphs))
    with planner.engine.attending(), plan.working(planner.engine):
        trained(planner.engine.inner, BATCHES[0])
    assert bool(graphs) is compiled
