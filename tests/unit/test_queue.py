"""The work queue: each key at most once at a time, never lost, retried with a growing delay."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from finetune_operator.queue import WorkQueue


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_added_twice_is_handed_out_once() -> None:
    """Many changes of one job before a worker is free are one piece of work."""

    async def scenario() -> None:
        queue: WorkQueue[str] = WorkQueue(Clock())
        queue.add("a")
        queue.add("a")
        assert await queue.get() == "a"
        assert len(queue) == 0

    asyncio.run(scenario())


def test_a_key_added_while_in_work_is_handed_out_again_afterwards() -> None:
    """A change during a reconcile is neither lost nor worked on beside it."""

    async def scenario() -> None:
        queue: WorkQueue[str] = WorkQueue(Clock())
        queue.add("a")
        await queue.get()
        queue.add("a")
        again = asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        assert not again.done()
        queue.done("a")
        assert await again == "a"

    asyncio.run(scenario())


def test_the_earliest_of_several_delays_wins() -> None:
    """A key due in ten seconds and in one is due in one, and once."""

    async def scenario() -> None:
        clock = Clock()
        queue: WorkQueue[str] = WorkQueue(clock)
        queue.add_after("a", 10)
        queue.add_after("a", 1)
        queue.add_after("a", 5)
        clock.now = 2
        keeper = asyncio.ensure_future(queue.keep_time())
        assert await queue.get() == "a"
        queue.done("a")
        clock.now = 20
        queue.add_after("b", 0)
        assert await queue.get() == "b"
        keeper.cancel()

    asyncio.run(scenario())


def test_the_delay_of_a_failing_key_doubles_up_to_a_limit_and_is_forgotten() -> None:
    """The n-th failure waits between half and all of first · 2^(n-1), at most the limit."""
    queue: WorkQueue[str] = WorkQueue(Clock(), first_delay=1, longest_delay=10)
    delays = [queue.retry("a") for _ in range(6)]
    for delay, longest in zip(delays, (1, 2, 4, 8, 10, 10), strict=True):
        assert longest / 2 <= delay <= longest
    queue.succeeded("a")
    assert queue.retry("a") <= 1


@pytest.mark.parametrize("seed", range(3))
def test_under_load_no_key_is_lost_or_worked_on_twice_at_once(seed: int) -> None:
    """Sixteen workers that fail now and then see the last level of all of 300 keys, and never overlap on one."""
    rng = random.Random(seed)
    level: dict[int, int] = {}
    seen: dict[int, int] = {}
    busy: Counter[int] = Counter()

    async def work(queue: WorkQueue[int]) -> None:
        while True:
            key = await queue.get()
            busy[key] += 1
            assert busy[key] == 1
            found = level[key]
            await asyncio.sleep(0)
            if rng.random() < 0.2:
                queue.retry(key)
            else:
                queue.succeeded(key)
                seen[key] = found
            busy[key] -= 1
            queue.done(key)

    async def scenario() -> None:
        queue: WorkQueue[int] = WorkQueue(asyncio.get_running_loop().time, first_delay=0.001, longest_delay=0.01)
        tasks = [asyncio.ensure_future(work(queue)) for _ in range(16)]
        tasks.append(asyncio.ensure_future(queue.keep_time()))
        for number in range(5):
            for key in range(300):
                level[key] = number
                queue.add(key)
            await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            while any(seen.get(key) != 4 for key in range(300)):
                assert not any(task.done() for task in tasks)
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()

    asyncio.run(scenario())
