"""Leader election: never two leaders, whatever the network does, and an elector that is told to stop stops."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.lease import Claim, Conflict, Elector, Timing

USUAL = Timing()


class Clockwork(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when nothing is left to do: hours take none, and each run is the same."""

    def __init__(self) -> None:
        loop = self
        self.now = 0.0

        class Idle(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> list[Any]:
                loop.now += timeout or 0
                return super().select(0)

        super().__init__(Idle())

    def time(self) -> float:
        return self.now


def play(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=Clockwork) as runner:
        runner.run(scenario)


def now() -> float:
    return asyncio.get_running_loop().time()


class Memory:
    """A Lease in memory with optimistic concurrency, and a network in between that is slow, hangs and fails."""

    def __init__(self, seed: int = 0) -> None:
        self.claim: Claim | None = None
        self.version = 0
        self.delay = 0.0
        self.hang = 0.0
        self.error = 0.0
        self.renewed_at = 0.0
        """When the renewal that was written last was asked for."""
        self._asked_at = 0.0
        self._rng = random.Random(seed)

    async def _travel(self) -> None:
        await asyncio.sleep(self.delay)
        if self._rng.random() < self.hang:
            await asyncio.sleep(3600)
        if self._rng.random() < self.error:
            raise OSError

    async def read(self) -> Claim | None:
        self._asked_at = now()
        await self._travel()
        return None if self.claim is None else replace(self.claim, version=str(self.version))

    async def write(self, claim: Claim) -> None:
        asked_at = self._asked_at
        await self._travel()
        if claim.version != ("" if self.claim is None else str(self.version)):
            raise Conflict
        self.claim, self.version, self.renewed_at = claim, self.version + 1, asked_at
        if self._rng.random() < self.error:
            raise OSError  # written, but the answer is lost


async def forever() -> None:
    await asyncio.Event().wait()


async def until(is_true: Any) -> None:
    while not is_true():
        await asyncio.sleep(0.01)


def test_one_leads_and_the_other_takes_over_when_it_is_gone() -> None:
    """The standby waits for the lease to run out, and not longer than a few requests."""

    async def scenario() -> None:
        store = Memory()
        first = asyncio.ensure_future(Elector(store, "first").lead(forever))
        await until(lambda: store.claim)
        began = asyncio.Event()

        async def work() -> None:
            began.set()

        second = asyncio.ensure_future(Elector(store, "second").lead(work))
        await asyncio.sleep(10 * USUAL.duration)
        assert not began.is_set()
        first.cancel()
        async with asyncio.timeout(USUAL.duration + 2 * USUAL.request):
            assert await second

    play(scenario())


def test_a_released_lease_is_free_at_once() -> None:
    """A replica that ends in order lets nobody wait for its lease to expire."""

    async def scenario() -> None:
        store = Memory()
        leader = Elector(store, "first", Timing(duration=60, renew=40, request=2))
        assert await leader.lead(lambda: asyncio.sleep(0))
        await leader.release()
        async with asyncio.timeout(USUAL.request):
            assert await Elector(store, "second").lead(lambda: asyncio.sleep(0))

    play(scenario())


@pytest.mark.parametrize("trouble", ["error", "hang"])
@pytest.mark.parametrize("delay", [0, 0.3, 0.9])
def test_a_leader_that_cannot_renew_works_until_its_term_ends_and_no_longer(trouble: str, delay: float) -> None:
    """Cut off at any moment, with a renewal failing or hanging: `renew` seconds after the last one was asked for."""

    async def scenario(cut_after: float) -> None:
        store, ended = Memory(), 0.0
        store.delay = delay

        async def work() -> None:
            nonlocal ended
            try:
                await forever()
            finally:
                ended = now()

        leading = asyncio.ensure_future(Elector(store, "first").lead(work))
        await asyncio.sleep(cut_after)
        setattr(store, trouble, 1.0)
        assert not await leading
        assert ended == pytest.approx(store.renewed_at + USUAL.renew, abs=1e-6)

    for tenths in range(20, 60):
        play(scenario(cut_after=tenths / 10))


def test_a_stolen_lease_ends_the_work_at_the_next_look() -> None:
    """Whoever wrote another holder into it leads from now on."""

    async def scenario() -> None:
        store = Memory()
        leading = asyncio.ensure_future(Elector(store, "first").lead(forever))
        await until(lambda: store.claim)
        assert store.claim is not None
        store.claim = replace(store.claim, holder="thief", renewal="theirs")
        async with asyncio.timeout(2 * USUAL.request):
            assert not await leading

    play(scenario())


def test_what_the_work_raises_is_raised() -> None:
    """It is no loss of the lead: whoever called is to know."""

    async def work() -> None:
        raise TimeoutError("its own")

    async def scenario() -> None:
        with pytest.raises(TimeoutError, match="its own"):
            await Elector(Memory(), "first").lead(work)

    play(scenario())


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
                    await Elector(store, name).lead(work)

            return asyncio.ensure_future(campaign())

        replicas = [replica(f"replica-{number}") for number in range(3)]
        for round in range(6000):
            store.hang, store.error = ((0, 0), (0.3, 0.3), (0.9, 0.5))[round // 20 % 3]
            await asyncio.sleep(1)
            if rng.random() < 0.03:
                victim = rng.randrange(3)
                replicas[victim].cancel()
                await asyncio.gather(replicas[victim], return_exceptions=True)
                replicas[victim] = replica(f"replica-{victim}-{round}")
        for one in replicas:
            one.cancel()
        await asyncio.gather(*replicas, return_exceptions=True)
        assert overlaps == 0
        assert terms > 100

    play(scenario())


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
