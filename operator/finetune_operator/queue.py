"""A work queue of keys: level-triggered work, done once per key at a time, retried with a growing delay.

It knows nothing of what a key stands for.
"""

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class WorkQueue(Generic[Key]):
    """Each key is either absent, waiting, due later, or in work; added while in work, it is handed out once more.

    `get` must be answered by `done`. The semantics are those of client-go's rate-limiting queue.
    """

    def __init__(self, clock: Callable[[], float], first_delay: float = 0.5, longest_delay: float = 300) -> None:
        self._clock = clock
        self._first_delay = first_delay
        self._longest_delay = longest_delay
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        self._in_work: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._due: dict[Key, float] = {}
        self._order = itertools.count()
        self._earlier = asyncio.Event()

    def __len__(self) -> int:
        """Keys that could be worked on now."""
        return len(self._waiting)

    def add(self, key: Key) -> None:
        """Hand `key` out as soon as a worker is free."""
        self._due.pop(key, None)
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._in_work:
            self._ready.put_nowait(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Hand `key` out in `seconds`, unless it is due earlier."""
        due = self._clock() + seconds
        if key in self._waiting or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        if self._heap[0][2] == key:
            self._earlier.set()

    def retry(self, key: Key) -> float:
        """Hand `key` out after a delay that doubles with each failure; returns the delay in seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        longest = min(self._longest_delay, self._first_delay * 2.0 ** min(failures - 1, 30))
        delay = random.uniform(0.5, 1) * longest
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """Forget the failures of `key`."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """The next key; it is handed to nobody else until `done`."""
        key = await self._ready.get()
        self._in_work.add(key)
        self._waiting.discard(key)
        return key

    def done(self, key: Key) -> None:
        """The worker no longer works on `key`."""
        self._in_work.discard(key)
        if key in self._waiting:
            self._ready.put_nowait(key)

    async def keep_time(self) -> None:
        """Move keys that became due; runs until cancelled."""
        while True:
            self._earlier.clear()
            wait = self._release()
            try:
                async with asyncio.timeout(wait):
                    await self._earlier.wait()
            except TimeoutError:
                pass

    def _release(self) -> float | None:
        """Add what is due; returns the seconds to the next due key, None without one."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) != due:
                heapq.heappop(self._heap)
                continue
            if due > self._clock():
                return due - self._clock()
            heapq.heappop(self._heap)
            self.add(key)
        return None
