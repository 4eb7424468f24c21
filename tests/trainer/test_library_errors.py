"""Exceptions of torch, bitsandbytes, NCCL and the system find the class that decides what happens next."""

import errno

import pytest
import torch
from finetune_api.failures import PEER_LOST
from finetune_api.names import FailureClass
from finetune_trainer.library_errors import is_lost_peer, unexpected_failure

NCCL_MEMORY = (
    "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error\n"
    "ncclUnhandledCudaError: Call to CUDA library failed.\nLast error:\nCuda failure 2 'out of memory'"
)
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"

GPU, HOST, INFRASTRUCTURE = (
    FailureClass.GPU_OUT_OF_MEMORY,
    FailureClass.HOST_OUT_OF_MEMORY,
    FailureClass.INFRASTRUCTURE,
)


@pytest.mark.parametrize(
    ("error", "failure_class", "reason"),
    [
        (torch.cuda.OutOfMemoryError("of any words"), GPU, "GpuOutOfMemory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), GPU, "GpuOutOfMemory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …"), GPU, "GpuOutOfMemory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            GPU,
            "GpuOutOfMemory",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), GPU, "GpuOutOfMemory"),
        (RuntimeError("Error out of memory at line 119 in file /src/csrc/pythonInterface.cpp"), GPU, "GpuOutOfMemory"),
        (torch.distributed.DistBackendError(NCCL_MEMORY), GPU, "GpuOutOfMemory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you …"),
            HOST,
            "HostOutOfMemory",
        ),
        (MemoryError(), HOST, "HostOutOfMemory"),
        (OSError(errno.ENOSPC, "No space left on device", "/scratch/x"), FailureClass.DISK_FULL, "DiskFull"),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), INFRASTRUCTURE, PEER_LOST),
        (RuntimeError(GLOO), INFRASTRUCTURE, PEER_LOST),
        (RuntimeError("CUDA error: device-side assert triggered"), INFRASTRUCTURE, "UnexpectedError"),
        # Text of a row or a file name in somebody else's message is no sign of memory.
        (ValueError("'CUDA out of memory' is no number"), INFRASTRUCTURE, "UnexpectedError"),
        (KeyError("surprise"), INFRASTRUCTURE, "UnexpectedError"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_exception_of_a_library_finds_its_class(error: Exception, failure_class: FailureClass, reason: str) -> None:
    failure = unexpected_failure(error)
    assert (failure.failure_class, failure.reason) == (failure_class, reason)
    assert is_lost_peer(error) is (reason == PEER_LOST)


def test_an_unexpected_exception_is_named_by_type() -> None:
    assert unexpected_failure(KeyError("surprise")).message == "KeyError: 'surprise'"
