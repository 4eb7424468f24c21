"""The same call for several files at a time. Loads without torch."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from finetune_trainer.errors import Termination

T = TypeVar("T")

CALLS_AT_ONCE = 4


def side_by_side(call: Callable[..., T], *arguments: Iterable[object]) -> list[T]:
    """What `call` gives for each of the arguments, in their order. After the first error no further call begins.

    SIGTERM waits for no call: a download may take longer than a pod has, and ends with the process.
    """
    pool, is_leaving = ThreadPoolExecutor(CALLS_AT_ONCE), False
    try:
        return list(pool.map(call, *arguments))
    except Termination:
        is_leaving = True
        raise
    finally:
        pool.shutdown(wait=not is_leaving, cancel_futures=True)
