"""The team of processes that train one model: who is in it, and what its members tell one another.

A run of one process is a team of one: the same calls, and no torch.distributed behind them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""Longest wait for a peer in one exchange: what one rank does alone has to be over by then."""


@dataclass(frozen=True)
class Team:
    """One process among the `size` that train together."""

    rank: int = 0
    size: int = 1
    per_node: int = 1
    """Processes on each node, numbered one after another."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes: logs, reports, checkpoints, the artifact."""
        return self.rank == 0

    @property
    def is_first_of_node(self) -> bool:
        """Whether this process fetches what the others on its node read from the same disk."""
        return self.rank % self.per_node == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place, on every rank."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; every rank gets the same answer."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))))

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives on the first rank, on every rank."""
        if self.size == 1:
            return make()
        box = [make() if self.is_first else None]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return cast(T, box[0])

    def from_all(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first_of_node(self, make: Callable[[], T]) -> T:
        """What `make` gives on the first rank of each node, on every rank of that node."""
        made = self.from_all(make() if self.is_first_of_node else None)
        return cast(T, made[self.rank - self.rank % self.per_node])

    def sum_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Replace each gradient by its sum over all ranks; those of shards are summed already.

        One all-reduce of one flat buffer at the end of a step: exact, with any number of micro-batches on a rank, and
        blind to which parameters a rank's rows have reached. DDP would reduce while the backward pass runs, which
        saves nothing worth its conditions where only an adapter is trained: it is a hundredth of the model.
        """
        if self.size == 1:
            return
        gradients = [_gradient(parameter) for parameter in parameters if not isinstance(parameter, DTensor)]
        if gradients:
            flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, summed in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
                gradient.copy_(summed.view_as(gradient))


ALONE = Team()
"""The team of a run with one process."""


def _gradient(parameter: Parameter) -> Tensor:
    """The gradient; zero where no row of this process has reached the parameter."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


@contextmanager
def joined(rank: int, size: int, per_node: int, gpu: int | None, meeting: str = "env://") -> Iterator[Team]:
    """Meet the others, by default where torchrun's environment says; `gpu` is this process's own, None on CPU.

    What is on a CPU travels by gloo, what is on a GPU by NCCL. A process that fails does not say goodbye: it would
    wait for peers that wait for it.
    """
    if gpu is None:
        dist.init_process_group("gloo", meeting, TIMEOUT, size, rank)
    else:
        torch.cuda.set_device(gpu)
        device = torch.device("cuda", gpu)
        dist.init_process_group("cpu:gloo,cuda:nccl", meeting, TIMEOUT, size, rank, device_id=device)
    yield Team(rank, size, per_node)
    dist.destroy_process_group()
