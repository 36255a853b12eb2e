"""Passes that run at the same time: so many, and as many again that wait aside for an answer that takes long."""

from __future__ import annotations

import asyncio

import pytest

from finetune_operator.places import Places


async def answered(by: asyncio.Event) -> str:
    await by.wait()
    return "answer"


async def waiting(places: Places, by: asyncio.Event) -> str:
    async with places:
        return await places.wait_for(answered(by))


async def settled() -> None:
    """All that can run has run."""
    for _ in range(50):
        await asyncio.sleep(0)


async def has_free(places: Places) -> bool:
    """Whether another pass gets a place."""

    async def look() -> None:
        async with places:
            pass

    look_in = asyncio.create_task(look())
    await settled()
    look_in.cancel()
    return look_in.done()


def test_a_pass_that_waits_long_makes_room_for_another() -> None:
    """And takes its place back before it goes on."""

    async def story() -> None:
        places, answer = Places(1, long=0), asyncio.Event()
        slow = asyncio.create_task(waiting(places, answer))
        await settled()
        async with places:
            answer.set()
            await settled()
            assert not slow.done()
        assert await slow == "answer"
        assert await has_free(places)

    asyncio.run(story())


def test_a_pass_that_is_answered_soon_keeps_its_place() -> None:
    async def story() -> None:
        places, answer = Places(1, long=60), asyncio.Event()
        quick = asyncio.create_task(waiting(places, answer))
        await settled()
        assert not await has_free(places)
        answer.set()
        assert await quick == "answer"

    asyncio.run(story())


def test_no_more_wait_aside_than_have_places() -> None:
    """The next one is told so, and its request is given up."""

    async def story() -> None:
        places, answer = Places(1, long=0), asyncio.Event()
        slow = asyncio.create_task(waiting(places, answer))
        await settled()
        with pytest.raises(TimeoutError, match="too many others wait"):
            await waiting(places, answer)
        assert await has_free(places)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)

    asyncio.run(story())


@pytest.mark.parametrize("times", [1, 2])
def test_a_pass_that_is_cancelled_aside_leaves_as_many_places(times: int) -> None:
    """Also where it is cancelled again while it waits for its place to come back."""

    async def story() -> None:
        places = Places(1, long=0)
        slow = asyncio.create_task(waiting(places, asyncio.Event()))
        await settled()
        async with places:
            for _ in range(times):
                slow.cancel()
                await settled()
        await asyncio.gather(slow, return_exceptions=True)
        await settled()
        async with places:
            assert not await has_free(places)

    asyncio.run(story())
