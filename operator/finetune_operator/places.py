"""How many passes run at the same time. One that waits long for an answer makes room for another one meanwhile.

It bounds both, and knows nothing of what a pass does: jobs that a slow webhook holds up are not to hold up all others,
nor to keep more requests open than an API server likes.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Answer = TypeVar("Answer")

LONG_SECONDS = 3
"""Most webhooks answer in milliseconds."""


class Places:
    """`async with places` takes one, and waits for it."""

    def __init__(self, number: int, long: float = LONG_SECONDS) -> None:
        """As many passes again may wait aside."""
        self._taken = asyncio.Semaphore(number)
        self._aside = asyncio.Semaphore(number)
        self._long = long

    async def __aenter__(self) -> None:
        await self._taken.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._taken.release()

    async def wait_for(self, asked: Coroutine[Any, Any, Answer]) -> Answer:
        """The answer, for a pass that has a place: while it takes long, the pass waits aside. Raises TimeoutError when
        too many do so already."""
        answer = asyncio.ensure_future(asked)
        try:
            await asyncio.wait([answer], timeout=self._long)
            if answer.done():
                return answer.result()
            if self._aside.locked():
                raise TimeoutError(f"none within {self._long:g} s, and too many others wait for theirs")
            async with self._aside:
                self._taken.release()
                try:
                    return await answer
                finally:
                    # Shielded: who is cancelled here, too, gives the place back on the way out.
                    await asyncio.shield(self._taken.acquire())
        finally:
            answer.cancel()
