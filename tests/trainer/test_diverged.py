"""A tuned model that says no number is the run's own fault: Diverged, exit 45, not tried again."""

from pathlib import Path

import pytest
import torch
from finetune_api.failures import POLICIES
from finetune_api.metrics import Metric
from finetune_api.names import Exit, FailureClass
from finetune_trainer.compute import Compute
from finetune_trainer.errors import RunError
from finetune_trainer.generate import Stops
from finetune_trainer.measure import Findings, compared, question
from finetune_trainer.model import adapted_base, load_model, merged_model
from finetune_trainer.prepared import TokenRows
from finetune_trainer.reload import write_probe
from safetensors.torch import load_file, save_file

from tests.trainer.decoders import a_decoder
from tests.trainer.stories import a_story_run
from tests.trainer.tiny import a_model_folder

CPU = Compute(torch.device("cpu"), torch.float32)


def assert_diverged(error: RunError) -> None:
    assert (error.failure_class, error.reason) == (FailureClass.DIVERGED, "NotFinite")
    assert POLICIES[error.failure_class].exit_code == Exit.DIVERGED
    assert error.failure().exit_code == 45


@pytest.mark.parametrize("perplexity", [float("nan"), float("inf")])
def test_a_tuned_perplexity_that_is_no_number(tmp_path: Path, perplexity: float) -> None:
    training = a_story_run(tmp_path, "hf://a/b").training
    asked = question(training, TokenRows.none(), [], Stops([2]), str)
    base, tuned = (Findings({Metric.PERPLEXITY: value}, []) for value in (3.0, perplexity))
    with pytest.raises(RunError, match=r"perplexity of the tuned model is (nan|inf)") as caught:
        compared(asked, base, tuned)
    assert_diverged(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    model = a_decoder()
    with torch.no_grad():
        model.model.norm.weight[0] = value
    with pytest.raises(RunError, match="logits of the tuned model") as caught:
        write_probe(model, [[5, 6, 7]], CPU, tmp_path / "probe.safetensors")
    assert_diverged(caught.value)


def test_an_adapter_that_cannot_be_merged_to_numbers(tmp_path: Path) -> None:
    run = a_story_run(tmp_path)
    base, adapter = a_model_folder(tmp_path / "base"), tmp_path / "adapter"
    load_model(base, run.training.method, 0, CPU).save_pretrained(str(adapter))
    weights = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in weights.items():
        if "lora_B" in name:
            tensor[0] = torch.inf
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match="merged") as caught:
        merged_model(adapted_base(base, adapter, CPU), torch.float32)
    assert_diverged(caught.value)
