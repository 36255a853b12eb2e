"""Leader election over a coordination.k8s.io Lease: at most one replica works at a time.

Times are the event loop's, monotonic and local: another replica's clock is never compared, only changes of the Lease
are observed. A Lease is no fence: a paused process may still send one write. Deterministic names and uid preconditions
make that harmless.
"""

import asyncio
import logging
import random
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

log = logging.getLogger(__name__)


class Conflict(Exception):
    """Somebody else wrote the Lease first."""


@dataclass(frozen=True)
class Claim:
    """What a Lease says. `renewal` changes with each renewal."""

    holder: str
    duration: float
    renewal: str
    transitions: int = 0
    version: str = ""
    """The object's resourceVersion; empty: it does not exist yet."""


class Store(Protocol):
    """Where the Lease is kept. Both raise OSError when it cannot be reached, `write` Conflict when it changed."""

    async def read(self) -> Claim | None: ...

    async def write(self, claim: Claim) -> None: ...


@dataclass(frozen=True)
class Timing:
    """Seconds. `request` < `renew` < `duration`: the leader stops before another may start."""

    duration: float = 15
    renew: float = 10
    request: float = 2


def _now() -> float:
    return asyncio.get_running_loop().time()


class Elector:
    """Campaigns for one identity."""

    def __init__(self, store: Store, identity: str, timing: Timing = Timing()) -> None:
        self._store = store
        self._identity = identity
        self._timing = timing
        self._seen: Claim | None = None
        self._seen_at = 0.0
        self._valid_until = 0.0

    async def lead(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Wait for the lead, then do `work`; True when the work ended by itself, False when the lead was lost."""
        while not await self._try():  # noqa: ASYNC110 - the Lease is asked for, nobody here sets it
            await asyncio.sleep(self._timing.request * random.uniform(0.8, 1.2))
        log.info("leading as %s", self._identity)
        task = asyncio.ensure_future(work())
        try:
            # Not asked now and then, but set: a renewal that hangs must not let the work go on beyond it.
            async with asyncio.timeout_at(self._valid_until) as term:
                while not (await asyncio.wait({task}, timeout=self._timing.request))[0]:
                    await self._try()
                    if not self._is_mine(self._seen):
                        log.error("the lead is lost to another replica")
                        return False
                    term.reschedule(self._valid_until)
        except TimeoutError:
            log.error("the lead is lost: it could not be renewed for %.0f seconds", self._timing.renew)
            return False
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await task
        return True

    async def release(self) -> None:
        """Give the Lease up, so that a standby need not wait for it to expire."""
        if self._seen is not None and self._is_mine(self._seen):
            with suppress(Conflict, TimeoutError, OSError):
                async with asyncio.timeout(self._timing.request):
                    current = await self._store.read()
                    if self._is_mine(current) and current is not None:
                        await self._store.write(replace(current, holder="", renewal=uuid.uuid4().hex))

    def _is_mine(self, claim: Claim | None) -> bool:
        return claim is not None and claim.holder == self._identity

    async def _try(self) -> bool:
        """Take or renew the Lease; False when it is somebody else's or cannot be reached."""
        # Counted from before the request: the write may land any time after it.
        asked_at = _now()
        try:
            # Never wait_for: on Python 3.11 it can swallow a cancellation, and the operator would not stop leading.
            async with asyncio.timeout(self._timing.request):
                current = await self._store.read()
                if not self._may_take(current):
                    return False
                claim = self._claim(current)
                await self._store.write(claim)
        except (Conflict, TimeoutError, OSError) as problem:
            log.debug("lease: %r", problem)
            return False
        self._valid_until = asked_at + self._timing.renew
        self._seen, self._seen_at = replace(claim, version=""), _now()
        return True

    def _may_take(self, current: Claim | None) -> bool:
        if current is None:
            return True
        seen = replace(current, version="")
        if seen != self._seen:
            self._seen, self._seen_at = seen, _now()
        return self._is_mine(current) or not current.holder or _now() > self._seen_at + current.duration

    def _claim(self, current: Claim | None) -> Claim:
        claim = Claim(self._identity, self._timing.duration, uuid.uuid4().hex)
        if current is None:
            return claim
        changes = 0 if self._is_mine(current) else 1
        return replace(claim, transitions=current.transitions + changes, version=current.version)
