"""Teams of real processes on this machine's CPU, talking by gloo."""

import multiprocessing
import socket
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from typing import Any, TypeVar

import torch
from finetune_trainer.parallel import Team, joined

from tests.trainer.warm import CONTEXT

T = TypeVar("T")


def in_team(size: int, work: Callable[..., T], *arguments: Any) -> list[T]:
    """What `work(team, *arguments)` gives in each of `size` processes; both travel by pickle.

    The first error of one ends all: the others would wait for it until the team's time is out.
    """
    port, others = free_port(), set(multiprocessing.active_children())
    with ProcessPoolExecutor(size, CONTEXT) as pool:
        found = [pool.submit(_member, rank, size, port, work, arguments) for rank in range(size)]
        done, waiting = wait(found, return_when=FIRST_EXCEPTION)
        for process in set(multiprocessing.active_children()) - others if waiting else ():
            process.terminate()
    errors = [error for future in done if (error := future.exception())]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, RuntimeError))  # What a lost peer is told by.
    return [future.result() for future in found]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _member(rank: int, size: int, port: int, work: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    torch.set_num_threads(1)
    with joined(rank, size, size, None, f"tcp://127.0.0.1:{port}") as team:
        return work(team, *arguments)


def alone(work: Callable[..., T], *arguments: Any) -> T:
    """The same without a team."""
    return work(Team(), *arguments)
