"""The libraries people use as oracles: HF Trainer's loss and gradients, transformers' schedulers; and bf16's trap."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_api.names import Stage
from finetune_api.training import Optimizer, Scheduler
from finetune_trainer.attention import rows_attended
from finetune_trainer.compute import Compute
from finetune_trainer.fit import fit
from finetune_trainer.log import Log
from finetune_trainer.loss import LossModel
from finetune_trainer.pack import micro_batches
from finetune_trainer.report import Reporter
from finetune_trainer.schedule import make_schedule
from transformers import PreTrainedModel, Trainer, TrainingArguments, get_scheduler

from tests.trainer.decoders import a_decoder, some_rows
from tests.trainer.runs import a_run
from tests.trainer.test_fit import LOG, SETTINGS

ROWS = some_rows((9, 4, 12, 4, 7, 6))
IGNORED = -100
CPU = torch.device("cpu")


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def padded_inputs(chosen: list[int]) -> dict[str, torch.Tensor]:
    """As a data collator of transformers makes them."""
    longest = max(int(ROWS.lengths[row]) for row in chosen)
    ids, mask = np.zeros((len(chosen), longest), np.int64), np.zeros((len(chosen), longest), np.int64)
    labels = np.full((len(chosen), longest), IGNORED)
    for line, row in enumerate(chosen):
        tokens, supervised = ROWS.row(row)
        ids[line, : len(tokens)], mask[line, : len(tokens)] = tokens, 1
        labels[line, : len(tokens)] = np.where(supervised, tokens, IGNORED)
    named = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(of) for name, of in named.items()}


def theirs(tmp_path: Path, batches: list[list[int]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one optimizer step of HF Trainer over these micro-batches."""
    model = a_decoder()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", gradient_accumulation_steps=len(batches)
    )
    trainer = Trainer(model=model, args=arguments)
    trainer.current_gradient_accumulation_steps = len(batches)
    model.train()
    supervised = torch.tensor(sum(int(ROWS.row(row)[1].sum()) for batch in batches for row in batch))
    losses = [trainer.training_step(model, padded_inputs(batch), supervised) for batch in batches]
    return float(sum(losses)), gradients(model)


def ours(batches: list[list[int]], packed: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """The same of our loss model."""
    model = a_decoder()
    loss_model, total = LossModel(model, True), 0.0
    made = [micro_batches(ROWS, batch, len(batch), packed)[0] for batch in batches]
    supervised = sum(batch.supervised for batch in made)
    with rows_attended(model) if packed else torch.enable_grad():
        for batch in made:
            loss = loss_model(batch) / supervised
            loss.backward()
            total += float(loss.detach())
    return total, gradients(model)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("batches", [[[0, 1, 2, 3]], [[0, 1], [2], [3, 4, 5]]], ids=["one batch", "accumulated"])
def test_loss_and_gradients_are_those_of_hf_trainer(tmp_path: Path, batches: list[list[int]], packed: bool) -> None:
    their_loss, their_gradients = theirs(tmp_path, batches)
    loss, found = ours(batches, packed)
    assert loss == pytest.approx(their_loss, rel=1e-5)
    assert found.keys() == their_gradients.keys()
    for name, gradient in found.items():
        scale = float(their_gradients[name].abs().max())
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-5, atol=1e-5 * scale, msg=name)


ARGUMENTS: dict[Scheduler, dict[str, Any]] = {
    Scheduler.COSINE_WITH_RESTARTS: {"num_cycles": 2},
    Scheduler.POLYNOMIAL: {"lr_end": 0.0, "power": 2.0},
    Scheduler.REDUCE_LR_ON_PLATEAU: {"factor": 0.5, "patience": 0, "threshold": 0.0, "eps": 0.0},
}


DEV_LOSSES = (3.0, 2.0, 2.5, 2.5, 1.0)


def our_rates(kind: Scheduler, total: int, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule, found = make_schedule(kind, optimizer, total, warmup), []
    for step in range(total):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.after_step()
        schedule.after_evaluation(DEV_LOSSES[step % len(DEV_LOSSES)])
    return found


def their_rates(kind: Scheduler, total: int, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule, found = get_scheduler(kind.value, optimizer, warmup, total, ARGUMENTS.get(kind)), []
    for step in range(total):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        losses = (DEV_LOSSES[step % len(DEV_LOSSES)],) if kind is Scheduler.REDUCE_LR_ON_PLATEAU else ()
        schedule.step(*losses)
    return found


@pytest.mark.parametrize("kind", list(Scheduler))
@pytest.mark.parametrize(("total", "warmup"), [(137, 11), (50, 0)])
def test_each_schedule_is_the_one_that_transformers_has_by_that_name(kind: Scheduler, total: int, warmup: int) -> None:
    assert our_rates(kind, total, warmup) == pytest.approx(their_rates(kind, total, warmup), rel=1e-6, abs=1e-12)


def moved_share(tmp_path: Path, masters: torch.dtype) -> float:
    """Share of the numbers that 40 steps at 1e-5 change where matrix products are in bf16."""
    model = a_decoder().to(masters)
    before = [weight.detach().clone() for weight in model.parameters()]
    run = a_run(tmp_path, "hf://a/b", [{"name": "d", "uri": "s3://b/d.jsonl"}])
    settings = replace(SETTINGS, total_steps=40, learning_rate=1e-5, optimizer=Optimizer.ADAMW, logging_steps=40)
    loss = LossModel(model, True, Compute(CPU, torch.bfloat16).autocast)
    report = Reporter(run, Stage.TRAIN, Log(stream=LOG))
    with rows_attended(model):
        fit(loss, some_rows((20,) * 12), settings, True, CPU, lambda _: 0.0, report)
    moved = sum(int((one != two).sum()) for one, two in zip(before, model.parameters(), strict=True))
    return moved / sum(weight.numel() for weight in before)


def test_fp32_masters_move_where_bf16_weights_would_stand_still(tmp_path: Path) -> None:
    assert moved_share(tmp_path, torch.float32) > 0.9
    assert moved_share(tmp_path, torch.bfloat16) < 0.5
