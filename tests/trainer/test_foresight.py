"""What prepare says about a GPU that is not there: the plan of training, refused where it cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.run import GpuSize, RunResult
from finetune_api.training import Lora, Method, Quantization
from finetune_trainer.compute import Compute
from finetune_trainer.errors import RunError
from finetune_trainer.loop import Settings
from finetune_trainer.measure import make_engine
from finetune_trainer.memory import weight_bytes
from finetune_trainer.model import load_base, load_model, shapes_on_gpu
from finetune_trainer.planning import Planner
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import read_prepared
from finetune_trainer.speed import speed_of
from finetune_trainer.store import open_store

from tests.trainer.runs import PAIR_TEMPLATES, a_dataset, a_run, some_pairs, write_jsonl
from tests.trainer.tiny import a_model_folder

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which the adapter is a small part."""
    return a_model_folder(tmp_path_factory.mktemp("foreseen"), hidden=128)


def prepared(tmp_path: Path, model: Path, gpu: GpuSize | None, devices: int = 1, **training: Any) -> RunResult:
    rows = write_jsonl(tmp_path / "rows.jsonl", some_pairs(8))
    run = a_run(tmp_path, model, [a_dataset(rows)], **PAIR_TEMPLATES, **training)
    run = run.model_copy(update={"gpu": gpu, "processes": devices})
    return prepare(run, open_store(run.output_uri, run.storage), lambda _: None)


def estimated(result: RunResult) -> int:
    assert result.plan is not None
    assert result.plan.estimated_bytes is not None
    return result.plan.estimated_bytes


def test_a_model_that_fits_is_shown_with_its_plan(tmp_path: Path, model: Path) -> None:
    result = prepared(tmp_path, model, GpuSize(name="NVIDIA-H100-80GB-HBM3", memory_bytes=80 * 2**30))
    assert result.plan is not None
    assert (result.plan.precision, result.plan.attention) == ("bfloat16", "packed")
    assert result.plan.available_bytes == int(80 * 2**30 * 0.9)
    assert 0 < estimated(result) < 64 * MIB
    assert result.estimate is not None
    assert result.estimate.gpu == "NVIDIA-H100-80GB-HBM3"


@pytest.mark.parametrize("method", [{"lora": {"rank": 4}}, {"type": "full"}])
def test_the_plan_foreseen_is_the_one_that_training_makes(tmp_path: Path, model: Path, method: dict[str, Any]) -> None:
    foreseen = prepared(tmp_path, model, GpuSize(name="big", memory_bytes=2**40), method=method)
    run = a_run(tmp_path, model, [a_dataset(tmp_path / "rows.jsonl")], **PAIR_TEMPLATES, method=method)
    compute = Compute(CPU, torch.float32 if method.get("type") == "full" else torch.bfloat16)
    loaded = load_model(model, run.training.method, 0, compute)
    there = read_prepared(open_store(run.output_uri, run.storage), tmp_path / "read")
    settings = Settings.of(there.index.effective_hyperparameters)
    engine = make_engine(loaded, Compute(CPU, torch.bfloat16), True, pytest.fail)
    made = Planner(run, engine, there.train, settings).plan(lambda lines: None).status
    assert foreseen.plan is not None
    assert foreseen.plan.micro_batch_tokens == made.micro_batch_tokens
    assert made.estimated_bytes is not None
    trained = sum(weight.numel() for weight in loaded.parameters() if weight.requires_grad)
    snapshot = 12 * trained  # On a CPU a checkpoint's copy takes memory of the device.
    assert estimated(foreseen) == pytest.approx(made.estimated_bytes - snapshot, rel=0.01)


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(tmp_path: Path, model: Path) -> None:
    with pytest.raises(RunError) as caught:
        prepared(tmp_path, model, GpuSize(name="tiny", memory_bytes=MIB))
    error = caught.value
    assert (error.failure_class, error.reason) == ("InvalidConfig", "NotEnoughMemory")
    assert "a micro-batch of one row" in error.message
    assert "0.9 MiB of GPU tiny, 1.0 MiB" in error.message
    for cure in ("maxSeqLength", "method.quantization", "bigger GPU"):
        assert cure in error.remedy


def test_a_gpu_between_gets_a_smaller_plan(tmp_path: Path, model: Path) -> None:
    whole = prepared(tmp_path / "whole", model, GpuSize(name="big", memory_bytes=2**40))
    less = prepared(tmp_path / "less", model, GpuSize(name="small", memory_bytes=estimated(whole)))
    assert whole.plan is not None
    assert less.plan is not None
    assert less.plan.micro_batch_tokens < whole.plan.micro_batch_tokens


def test_a_gpu_of_unknown_size_is_no_reason_to_refuse_but_to_warn(tmp_path: Path, model: Path) -> None:
    result = prepared(tmp_path, model, GpuSize(name="nvidia.com/gpu"))
    assert result.data is not None
    assert any("whether the model fits is not checked" in warning for warning in result.data.warnings)
    assert estimated(result) > 0
    assert result.estimate is None


def test_a_run_on_cpu_has_no_plan_before_it_trains(tmp_path: Path, model: Path) -> None:
    result = prepared(tmp_path, model, None)
    assert (result.plan, result.estimate) == (None, None)


def test_full_training_takes_more_and_several_gpus_share_it(tmp_path: Path, model: Path) -> None:
    gpu = GpuSize(name="big", memory_bytes=2**40)
    lora = prepared(tmp_path / "lora", model, gpu)
    full = prepared(tmp_path / "full", model, gpu, method={"type": "full"})
    shared = prepared(tmp_path / "shared", model, gpu, devices=4, method={"type": "full"})
    assert estimated(lora) < estimated(shared) < estimated(full)


@pytest.mark.parametrize("quantization", [Quantization.INT8, Quantization.NF4])
def test_quantised_weights_are_as_small_as_bitsandbytes_makes_them(model: Path, quantization: Quantization) -> None:
    run = a_run(Path("unused"), model, [a_dataset(Path("rows.jsonl"))])
    method = Method(quantization=quantization, lora=Lora(rank=4))
    shapes = shapes_on_gpu(model, run.training.model_copy(update={"method": method}))
    adapter = sum(weight.numel() * 4 for name, weight in shapes.model.named_parameters() if "lora_" in name)
    base = load_base(model, quantization, torch.bfloat16, Compute(CPU, torch.bfloat16).device)
    foreseen = weight_bytes(shapes.model) - adapter - shapes.quantised_away
    assert foreseen == pytest.approx(weight_bytes(base), rel=0.03)


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA-H100-80GB-HBM3", 989e12),
        ("h200", 989e12),
        ("NVIDIA-L4", 121e12),
        ("nvidia.com/gpu", None),
        ("L4000", None),
    ],
)
def test_the_speed_of_gpus_is_known_by_their_names(gpu: str, peak: float | None) -> None:
    assert speed_of(gpu) == (None if peak is None else pytest.approx(0.8 * peak))
