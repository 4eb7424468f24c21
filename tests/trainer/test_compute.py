"""Where a run computes, and what is said where its GPU is not there."""

from types import SimpleNamespace

import pytest
import torch
from finetune_api.names import FailureClass
from finetune_trainer import compute
from finetune_trainer.compute import compute_for, operations_per_second, require_gpu
from finetune_trainer.errors import RunError


def test_a_run_without_gpus_computes_in_fp32_on_the_cpu() -> None:
    found = compute_for(gpus=0, threads=None)
    assert (found.device.type, found.dtype) == ("cpu", torch.float32)


def test_a_gpu_that_is_not_seen_is_no_stack_trace_but_a_cluster_to_look_at() -> None:
    beyond = torch.cuda.device_count()
    with pytest.raises(RunError, match=f"was given {beyond + 1} GPU, but CUDA sees") as refused:
        require_gpu(gpus=beyond + 1, gpu=beyond)
    assert refused.value.failure_class is FailureClass.INFRASTRUCTURE
    assert refused.value.reason == "GpuNotFound"
    assert "trainer.gpusPerNode" in refused.value.remedy


def test_speed_is_what_products_of_a_size_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts its readings stands for the GPU's: ten products between two of them."""
    monkeypatch.setattr(compute, "PRODUCT_SIZE", 8)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(compute, "time", SimpleNamespace(monotonic=iter(range(1, 9)).__next__))
    assert operations_per_second(compute_for(gpus=0, threads=None)) == 10 * 2 * 8**3
