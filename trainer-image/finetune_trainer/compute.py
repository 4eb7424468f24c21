"""Where and how precisely a run computes: fp32 on CPU, bf16 on a GPU that has it."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from finetune_api.names import FailureClass

from finetune_trainer.errors import RunError


@dataclass(frozen=True)
class Compute:
    """A device and the precision of its matrix products; trained parameters are fp32 everywhere."""

    device: torch.device
    dtype: torch.dtype

    @property
    def reason(self) -> str:
        """Why this precision."""
        if self.device.type == "cpu":
            return "a CPU computes in fp32"
        if self.dtype == torch.bfloat16:
            return "this GPU has bf16; trained weights and optimizer stay fp32, and TF32 off: it would round positions"
        return "this GPU has no bf16"

    @property
    def processor(self) -> str:
        """Which kernels compute: the GPU's name, or the CPU's widest instructions."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return str(torch.backends.cpu.get_cpu_capability())

    def autocast(self) -> AbstractContextManager[object]:
        """Inside, matrix products are computed in `dtype`."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


PRODUCT_SIZE, PRODUCTS = 4096, 10
"""What is multiplied to find out how fast a GPU is: milliseconds, and 96 MiB in bf16."""


def operations_per_second(compute: Compute) -> float:
    """Floating-point operations of large matrix products in this precision, tried out on the GPU."""
    factor = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, device=compute.device, dtype=compute.dtype)
    out = torch.empty_like(factor)

    def multiply() -> float:
        for _ in range(PRODUCTS):
            torch.mm(factor, factor, out=out)
        torch.cuda.synchronize(compute.device)
        return time.monotonic()

    began = multiply()  # The first products choose their kernel.
    return PRODUCTS * 2 * PRODUCT_SIZE**3 / (multiply() - began)


def compute_for(gpus: int, threads: int | None, gpu: int = 0) -> Compute:
    """The pod's GPU number `gpu`, or the CPU with `threads` threads. Raises RunError where a GPU is not seen."""
    if threads is not None:
        torch.set_num_threads(threads)
    if gpus == 0:
        return Compute(torch.device("cpu"), torch.float32)
    require_gpu(gpus, gpu)
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Compute(torch.device("cuda", gpu), torch.bfloat16 if has_bf16 else torch.float32)


def require_gpu(gpus: int, gpu: int) -> None:
    """Raises RunError (Infrastructure, GpuNotFound) where CUDA does not see number `gpu` of the pod's `gpus`."""
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen <= gpu:
        message = f"the run was given {gpus} GPU, but CUDA sees {seen or 'none'} in this pod"
        remedy = "Check the node's driver and device plugin, or set trainer.gpusPerNode to 0 to train on CPU."
        raise RunError(FailureClass.INFRASTRUCTURE, "GpuNotFound", message, remedy)
