"""Leader election: never two leaders, whatever the network does, and an elector that is told to stop stops."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from finetune_operator.lease import Claim, Conflict, Elector, Timing

FAST = Timing(duration=0.3, renew=0.2, request=0.04)


class Memory:
    """A Lease in memory with optimistic concurrency, and a network in between that hangs and fails."""

    def __init__(self, seed: int = 0) -> None:
        self.claim: Claim | None = None
        self.version = 0
        self.hang = 0.0
        self.error = 0.0
        self._rng = random.Random(seed)

    async def _travel(self) -> None:
        await asyncio.sleep(0)
        if self._rng.random() < self.hang:
            await asyncio.sleep(5)
        if self._rng.random() < self.error:
            raise OSError

    async def read(self) -> Claim | None:
        await self._travel()
        return None if self.claim is None else replace(self.claim, version=str(self.version))

    async def write(self, claim: Claim) -> None:
        await self._travel()
        if claim.version != ("" if self.claim is None else str(self.version)):
            raise Conflict
        self.claim, self.version = claim, self.version + 1
        if self._rng.random() < self.error:
            raise OSError  # written, but the answer is lost


async def forever() -> None:
    await asyncio.Event().wait()


def test_one_leads_and_the_other_takes_over_when_it_is_gone() -> None:
    """The standby waits for the lease to run out, and not longer than a few requests."""

    async def scenario() -> None:
        store = Memory()
        first = asyncio.ensure_future(Elector(store, "first", FAST).lead(forever))
        while store.claim is None:
            await asyncio.sleep(0.01)
        began = asyncio.Event()

        async def work() -> None:
            began.set()

        second = asyncio.ensure_future(Elector(store, "second", FAST).lead(work))
        await asyncio.sleep(FAST.duration)
        assert not began.is_set()
        first.cancel()
        async with asyncio.timeout(2):
            assert await second

    asyncio.run(scenario())


def test_a_released_lease_is_free_at_once() -> None:
    """A replica that ends in order lets nobody wait for its lease to expire."""

    async def scenario() -> None:
        store = Memory()
        leader = Elector(store, "first", Timing(duration=60, renew=40, request=0.04))
        assert await leader.lead(lambda: asyncio.sleep(0))
        await leader.release()
        async with asyncio.timeout(1):
            assert await Elector(store, "second", FAST).lead(lambda: asyncio.sleep(0))

    asyncio.run(scenario())


def test_a_leader_that_cannot_renew_stops_before_another_may_start() -> None:
    """Cut off, it ends its work within `renew`, which is shorter than `duration`."""

    async def scenario() -> None:
        store = Memory()
        leading = asyncio.ensure_future(Elector(store, "first", FAST).lead(forever))
        while store.claim is None:
            await asyncio.sleep(0.01)
        store.error = 1.0
        async with asyncio.timeout(FAST.renew + 5 * FAST.request):
            assert not await leading

    asyncio.run(scenario())


def test_hangs_errors_and_lost_answers_never_make_two_leaders() -> None:
    """Three replicas, a bad network, kills and restarts: at no moment do two of them work."""

    async def scenario() -> None:
        store, rng = Memory(1), random.Random(1)
        leaders: set[str] = set()
        overlaps = terms = 0

        def replica(name: str) -> asyncio.Future[object]:
            async def work() -> None:
                nonlocal overlaps, terms
                leaders.add(name)
                terms += 1
                overlaps += len(leaders) > 1
                try:
                    await forever()
                finally:
                    leaders.discard(name)

            async def campaign() -> None:
                while True:
                    await Elector(store, name, FAST).lead(work)

            return asyncio.ensure_future(campaign())

        replicas = [replica(f"replica-{number}") for number in range(3)]
        for round in range(200):
            store.hang, store.error = ((0, 0), (0.3, 0.3), (0.9, 0.5))[round // 20 % 3]
            await asyncio.sleep(0.02)
            if rng.random() < 0.03:
                victim = rng.randrange(3)
                replicas[victim].cancel()
                await asyncio.gather(replicas[victim], return_exceptions=True)
                replicas[victim] = replica(f"replica-{victim}-{round}")
        for one in replicas:
            one.cancel()
        await asyncio.gather(*replicas, return_exceptions=True)
        assert overlaps == 0
        assert terms > 1

    asyncio.run(scenario())


def test_a_cancelled_elector_always_stops() -> None:
    """Cancelled at any of 1,500 moments, none swallows it: who will not stop leading is a second leader."""

    async def scenario() -> None:
        for number in range(1500):
            task = asyncio.ensure_future(Elector(Memory(number), "one", Timing(0.01, 0.006, 0.001)).lead(forever))
            await asyncio.sleep(0.00002 * (number % 100))
            task.cancel()
            async with asyncio.timeout(1):
                await asyncio.gather(task, return_exceptions=True)
            assert task.done()

    asyncio.run(scenario())
