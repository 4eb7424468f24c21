"""A step that has nothing to tell never asks a tensor for its value: on a GPU the host would wait for the device."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.names import Stage
from finetune_api.training import Lora, Optimizer
from finetune_trainer.adapter import attach_adapter
from finetune_trainer.attention import rows_attended
from finetune_trainer.batch import Batch
from finetune_trainer.fit import fit
from finetune_trainer.log import Log
from finetune_trainer.loss import LossModel
from finetune_trainer.report import Reporter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.decoders import a_decoder
from tests.trainer.runs import a_run
from tests.trainer.test_fit import ROWS, SETTINGS

READS_DATA = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""How torch marks the operators whose result the host has to see: item(), bool(), nonzero(), masked selection."""


class Asked(TorchDispatchMode):
    """What makes the host wait while this is on."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.found: list[str] = []

    def __torch_dispatch__(
        self, operator: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if READS_DATA & set(operator.tags):
            self.count(str(operator))
        return operator(*args, **(kwargs or {}))

    def count(self, what: str) -> None:
        if self.on:
            self.found.append(what)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Hears of calls too that on a CPU are no operators."""
    asked = Asked()
    for name in ("tolist", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, counted(getattr(Tensor, name), asked))
    return asked


def counted(real: Callable[..., Any], asked: Asked) -> Callable[..., Any]:
    def call(tensor: Tensor, *given: Any) -> Any:
        asked.count(str(real))
        return real(tensor, *given)

    return call


class Watched(LossModel):
    """Watches from the first micro-batch on until the last step begins, which is logged; a step is a micro-batch."""

    def __init__(self, asked: Asked, look: Callable[[Tensor], object]) -> None:
        super().__init__(a_decoder(), plain_head=True)
        attach_adapter(self.model, Lora(rank=4), seed=0)
        self._asked, self._look, self._left = asked, look, STEPS

    def forward(self, batch: Batch) -> Tensor:
        self._left -= 1
        self._asked.on = self._left > 0
        loss = super().forward(batch)
        self._look(loss.detach())
        return loss


STEPS = 3


def train_watched(
    asked: Asked, folder: Path, optimizer: Optimizer = Optimizer.ADAMW, look: Callable[[Tensor], object] = id
) -> list[str]:
    """Train so that no step but the last is logged; `look` gets the loss of each micro-batch."""
    model, settings = Watched(asked, look), replace(SETTINGS, total_steps=STEPS, logging_steps=9, optimizer=optimizer)
    run = a_run(folder, "hf://a/b", [{"name": "d", "uri": "s3://b/d"}])
    report = Reporter(run, Stage.TRAIN, Log(stream=io.StringIO()))
    with rows_attended(model.model), asked:
        fit(model, ROWS, settings, True, torch.device("cpu"), lambda _: 0.0, report)
    return asked.found


@pytest.mark.parametrize("optimizer", [Optimizer.ADAMW, Optimizer.ADAFACTOR, Optimizer.SGD])
def test_nothing_in_a_step_waits_for_the_device(asked: Asked, tmp_path: Path, optimizer: Optimizer) -> None:
    assert train_watched(asked, tmp_path, optimizer) == []


@pytest.mark.parametrize("look", [float, bool, Tensor.item, Tensor.nonzero, lambda loss: loss.cpu()])
def test_it_would_be_noticed(asked: Asked, tmp_path: Path, look: Callable[[Tensor], object]) -> None:
    assert len(train_watched(asked, tmp_path, look=look)) == STEPS - 1
