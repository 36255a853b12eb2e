"""Keeps kopf's own watch going as `Cluster.watch` keeps ours, tells when kopf lists, and spares it what is no news.

kopf goes on from the last resourceVersion when its stream ends, lists anew after an ERROR 410, and ends the operator
after any other error. So a stream that breaks, in whatever way, is made to end; kopf itself is left as it is. What it
does for each change costs more than reading it: our own writes of status and progress reach it as bookmarks.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from time import monotonic
from typing import Any

import aiohttp
from aiohttp.http_exceptions import LineTooLong
from pydantic_core import from_json, to_json

from finetune_operator.cluster import BROKEN, STEADY_SECONDS
from finetune_operator.status import is_told_final

log = logging.getLogger(__name__)

GONE = b'{"type":"ERROR","object":{"code":410}}\n'
"""As kopf is told that it has to list anew."""


class News:
    """Which changes of FineTuneJobs count: an edit, a deletion, an end, and what was not heard of before."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, bool, bool]] = {}

    def take(self, change: Mapping[str, Any]) -> bool:
        """Whether a change of a watch says more than the last one of that job did; remembers it."""
        body = change["object"]
        metadata = body["metadata"]
        uid, is_over = metadata["uid"], is_told_final(body)
        now = (metadata["generation"], "deletionTimestamp" in metadata, is_over)
        if change["type"] == "DELETED":
            self._known.pop(uid, None)
            return True
        before, self._known[uid] = self._known.get(uid), now
        return now != before

    def forget(self) -> None:
        """All was told anew, past this."""
        self._known.clear()


def steady_watch(path_end: str, listed: Callable[[], None]) -> aiohttp.ClientMiddlewareType:
    """For the session that kopf gets. `listed` is called for each list of the objects whose URLs end so."""
    news = News()

    async def middleware(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await send(request)
        if "watch" in request.url.query:
            is_gone = response.status == 410
            response.content = _Stream(response.content, is_gone, news)  # type: ignore[assignment]
            response.status = 200 if is_gone else response.status
        elif request.url.path.endswith(path_end):
            news.forget()
            listed()
        return response

    return middleware


class _Stream:
    """The body of a watch: its whole lines, up to an end that is in order."""

    def __init__(self, body: aiohttp.StreamReader, is_gone: bool, news: News) -> None:
        """`is_gone`: the server answered with the status 410 instead of an ERROR."""
        self._body = body
        self._is_gone = is_gone
        self._news = news

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    async def iter_chunked(self, _: int) -> AsyncIterator[bytes]:
        began, code, problem = monotonic(), 0, ""
        try:
            async for line in _only(GONE) if self._is_gone else self._body:
                change = from_json(line)
                code = _error_code(change)
                if code == 410:
                    break
                if code:
                    raise OSError(f"the server says {line[:300].decode(errors='replace')}")
                yield line if change["type"] == "BOOKMARK" or self._news.take(change) else _bookmark(change)
        except BROKEN as failure:
            # A stream cannot pass a line that is too long, a list can.
            code, problem = 410 if isinstance(failure, LineTooLong) else 0, str(failure) or repr(failure)
        if problem:
            log.info("the watch of FineTuneJobs goes on: %s", problem)
        if monotonic() - began < STEADY_SECONDS:
            await asyncio.sleep(random.uniform(0.5, 1))
        # Last: kopf does not come back after it.
        if code == 410:
            yield GONE


async def _only(line: bytes) -> AsyncIterator[bytes]:
    yield line


def _bookmark(change: Mapping[str, Any]) -> bytes:
    """That the stream has come so far, as the API server says it."""
    version = change["object"]["metadata"]["resourceVersion"]
    return to_json({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}}) + b"\n"


def _error_code(change: Mapping[str, Any]) -> int:
    """The code of an ERROR, 0 for a change; raises one of BROKEN for what is neither."""
    about = dict(change["object"])
    return int(about.get("code") or 500) if change["type"] == "ERROR" else 0
