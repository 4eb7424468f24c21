"""Estimated against measured memory; activation checkpointing saves memory and changes nothing else."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetune_api.training import Lora, Method, Optimizer, Quantization
from finetune_trainer.adapter import attach_adapter
from finetune_trainer.attention import rows_attended
from finetune_trainer.batch import Batch
from finetune_trainer.compute import Compute
from finetune_trainer.fused_lora import fuse_adapters
from finetune_trainer.loss import LossModel
from finetune_trainer.memory import (
    STATE_BYTES,
    Ledger,
    available_bytes,
    checkpointing,
    footprint,
    sharded_footprint,
    step_bytes,
    weight_bytes,
)
from finetune_trainer.model import bare, load_model
from finetune_trainer.optimizer import make_optimizer, trained_parameters
from finetune_trainer.pack import micro_batches
from finetune_trainer.shards import gathered
from torch import Tensor
from transformers import PreTrainedModel

from tests.trainer.decoders import COMMONEST, FAMILIES, PACKED, a_decoder, packed_rows, some_rows
from tests.trainer.measured import measured_peak
from tests.trainer.tiny import a_model_folder

CPU = torch.device("cpu")
LONG = some_rows((60, 50, 60, 40, 33, 60, 21, 57), prompt=20)
TOLERANCE = 0.15


def a_batch(packed: bool = True) -> Batch:
    return micro_batches(LONG, range(8), 8, packed)[0]


def a_model(family: str, method: str) -> PreTrainedModel:
    """A decoder, whole or with a fused adapter."""
    model = a_decoder(family)
    if method == "full":
        return model
    inner = bare(attach_adapter(model, Lora(rank=4), seed=0))
    fuse_adapters(inner)
    return inner


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", COMMONEST)
def test_the_estimate_of_a_step_is_what_it_takes(family: str, method: str, packed: bool, checkpointed: bool) -> None:
    model = a_model(family, method)
    loss, batch = LossModel(model, plain_head=True), a_batch(packed)
    with rows_attended(model) if packed else nullcontext(), checkpointing(model, checkpointed):
        estimate = step_bytes(loss, batch, CPU)
        with measured_peak() as peak:
            loss(batch).backward()
    assert estimate == pytest.approx(peak[0], rel=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_estimated(family: str) -> None:
    model = a_model(family, "lora")
    loss, batch = LossModel(model, plain_head=family != "gemma2"), a_batch(family in PACKED)
    with packed_rows(model) if family in PACKED else nullcontext():
        estimate = step_bytes(loss, batch, CPU)
        with measured_peak() as peak:
            loss(batch).backward()
    assert estimate == pytest.approx(peak[0], rel=TOLERANCE)


@pytest.mark.parametrize("quantization", [Quantization.INT8, Quantization.NF4])
def test_the_estimate_of_a_quantised_step_is_what_it_takes(tmp_path: Path, quantization: Quantization) -> None:
    folder = a_model_folder(tmp_path, hidden=128)
    method = Method(quantization=quantization, lora=Lora(rank=4))
    model = bare(load_model(folder, method, 0, Compute(CPU, torch.float32)))
    loss, batch = LossModel(model, plain_head=True), a_batch()
    with rows_attended(model):
        estimate = step_bytes(loss, batch, CPU)
        with measured_peak() as peak:
            loss(batch).backward()
    assert estimate == pytest.approx(peak[0], rel=TOLERANCE)


def test_the_estimate_of_training_is_what_a_run_takes() -> None:
    model = a_model("llama", "full")
    loss, batch = LossModel(model, plain_head=True), a_batch()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    with rows_attended(model):
        estimate = footprint(loss, batch, Optimizer.ADAMW, CPU, accumulating=True)
        optimizer = make_optimizer(Optimizer.ADAMW, trained_parameters(model), 1e-4, 0.0)
        with measured_peak() as peak:
            for _ in range(2):
                loss(batch).backward()
                loss(batch).backward()
                optimizer.step()
                optimizer.zero_grad()
    assert estimate.weights == pytest.approx(weights, rel=0.01)
    assert estimate.total - estimate.snapshot == pytest.approx(weights + peak[0], rel=TOLERANCE)
    assert estimate.snapshot == pytest.approx(3 * weights, rel=0.01)


def test_shards_never_take_less_than_the_whole_weights_that_they_are_cut_from() -> None:
    model = a_model("llama", "full")
    loss = LossModel(model, plain_head=True)
    weights, compute = weight_bytes(loss), Compute(torch.device("meta"), torch.float32)
    with rows_attended(model):
        few, many = (
            sharded_footprint(loss, a_batch(), Optimizer.SGD, CPU, processes, gathered(loss, compute))
            for processes in (2, 1000)
        )
    assert few.total > many.total >= weights == many.whole_weights
    assert replace(many, step=0, snapshot=0).total == weights


def gradients(model: PreTrainedModel, batch: Batch, checkpointed: bool) -> list[Tensor]:
    """The loss, and the gradient of each trained parameter."""
    model.zero_grad()
    torch.manual_seed(0)
    with packed_rows(model) if batch.layout else nullcontext(), checkpointing(model, checkpointed):
        loss = LossModel(model, plain_head=True)(batch)
        loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", COMMONEST)
def test_activations_computed_again_have_the_same_loss_and_gradients(family: str, method: str, packed: bool) -> None:
    model, batch = a_model(family, method), a_batch(packed)
    kept, again = (gradients(model, batch, checkpointed) for checkpointed in (False, True))
    assert len(again) == len(kept) > 3
    for ours, theirs in zip(again, kept, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_its_activations_again(family: str) -> None:
    model, batch = a_model(family, "lora"), a_batch(family in PACKED)
    kept, again = (gradients(model, batch, checkpointed) for checkpointed in (False, True))
    assert len(again) == len(kept) > 3
    for ours, theirs in zip(again, kept, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_activations_computed_again_take_less_memory(method: str) -> None:
    model = a_model("llama", method)
    loss, batch, peaks = LossModel(model, plain_head=True), a_batch(), []
    for checkpointed in (False, True):
        model.zero_grad()
        with rows_attended(model), checkpointing(model, checkpointed), Ledger() as ledger:
            loss(batch).backward()
        peaks.append(ledger.peak)
    assert peaks[1] < 0.75 * peaks[0]


def test_views_of_weights_are_not_counted_again() -> None:
    model = a_decoder(hidden_size=256, intermediate_size=1024)
    loss, batch = LossModel(model.requires_grad_(False), plain_head=True), micro_batches(LONG, range(2), 2, True)[0]
    next(model.parameters()).requires_grad_()
    with rows_attended(model):
        estimate = step_bytes(loss, batch, CPU)
        with measured_peak() as peak:
            loss(batch).backward()
    assert peak[0] < weight_bytes(loss)
    assert estimate == pytest.approx(peak[0], rel=0.05)


def test_an_estimate_leaves_the_model_and_its_randomness_alone() -> None:
    model, batch = a_model("llama", "lora"), a_batch()
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    with rows_attended(model):
        step_bytes(LossModel(model, plain_head=True), batch, CPU)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_every_optimizer_has_the_size_of_its_state() -> None:
    assert set(STATE_BYTES) == set(Optimizer)


def test_the_pods_limit_counts_what_the_libraries_take_already() -> None:
    found = available_bytes(CPU, 8 * 2**30, weights=0)
    assert found is not None
    assert 0 < found < 8 * 2**30
