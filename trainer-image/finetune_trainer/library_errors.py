"""What an exception of a library means for a run: memory that ran out, a disk that is full, a peer that is gone.

Libraries raise plain RuntimeErrors for the same thing in many words, so what is known is looked up by type, then by
text. Loads without torch.
"""

import errno
import sys

from finetune_api.failures import PEER_LOST
from finetune_api.names import FailureClass
from finetune_api.status import Failure

from finetune_trainer.errors import RunError

GPU_MEMORY_WORDS = (
    "cuda out of memory",
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "error out of memory at line",
    "cuda failure 2 'out of memory'",
)
"""In lower case. Sources: c10 CUDACachingAllocator and CUDAException, cuBLAS and cuDNN status codes, bitsandbytes
`CUDA_CHECK_RETURN`, NCCL `CUDACHECK`."""

HOST_MEMORY_WORDS = ("defaultcpuallocator: can't allocate memory", "defaultcpuallocator: not enough memory")
"""In lower case. Source: c10 `alloc_cpu.cpp`."""


def unexpected_failure(error: Exception) -> Failure:
    """The failure that an exception of a library means."""
    if _is_gpu_out_of_memory(error):
        return _failure(FailureClass.GPU_OUT_OF_MEMORY, "GpuOutOfMemory", f"the GPU has no memory left: {error}")
    if isinstance(error, MemoryError) or _says(error, HOST_MEMORY_WORDS):
        return _failure(FailureClass.HOST_OUT_OF_MEMORY, "HostOutOfMemory", "the pod has no memory left")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _failure(FailureClass.DISK_FULL, "DiskFull", f"no space left on the pod's disk: {error.filename or ''}")
    if is_lost_peer(error):
        return _failure(FailureClass.INFRASTRUCTURE, PEER_LOST, f"the training processes lost one another: {error}")
    return _failure(FailureClass.INFRASTRUCTURE, "UnexpectedError", f"{type(error).__name__}: {error}")


def is_lost_peer(error: Exception) -> bool:
    """NCCL has exceptions of its own; gloo's are known by the source file that they name."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError) or _is_gpu_out_of_memory(error):
        return False
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def _is_gpu_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    typed = torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)
    return typed or _says(error, GPU_MEMORY_WORDS)


def _says(error: Exception, words: tuple[str, ...]) -> bool:
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return any(each in text for each in words)


def _failure(failure_class: FailureClass, reason: str, message: str) -> Failure:
    return RunError(failure_class, reason, message).failure()
