"""The queue: no key twice at a time, none forgotten."""

import asyncio

from finetune_operator.workqueue import WorkQueue


async def test_a_key_that_is_added_many_times_is_worked_on_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(5):
        queue.add("a")
    assert await queue.get() == "a"
    assert len(queue) == 0


async def test_a_change_that_comes_during_a_pass_is_looked_at_after_it() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    await queue.get()
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert len(queue) == 1


async def test_of_several_later_looks_the_earliest_counts() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 60)
    queue.add_after("a", 0.01)
    queue.add_after("a", 60)
    assert await asyncio.wait_for(queue.get(), 5) == "a"


async def test_a_failing_key_waits_longer_each_time_until_it_succeeds() -> None:
    queue: WorkQueue[str] = WorkQueue()
    waits = [queue.retry("a") for _ in range(12)]
    assert waits[0] < 0.3
    assert waits[3] > waits[0]
    assert max(waits) <= 36, "what went wrong for long is to be over a minute after its cause"
    queue.succeeded("a")
    assert queue.retry("a") < 0.3


async def test_whoever_asks_for_time_gets_it() -> None:
    queue: WorkQueue[str] = WorkQueue()
    assert queue.retry("a") < 1
    assert 30 <= queue.retry("a", at_least=30) <= 36
    assert queue.failing == 1
