"""The watch: it goes on after whatever happens to its stream, and only a server that forgot makes it list anew.

The API server is scripted: each list and each stream that the watch asks for is answered by the next one of a script.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from finetune_operator.cluster import Access, Change, Cluster, Kind

PODS = Kind("v1", "pods")


@dataclass
class Script:
    """A server of pods. `list` is what each list finds, `streams` what happens in one watch after the other."""

    pods: list[str] = field(default_factory=list)
    streams: list[Callable[[web.Request], Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """`list`, or the resourceVersion that a watch was asked from."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            self.asked.append(request.query["resourceVersion"])
            if self.streams:
                answer: web.StreamResponse = await self.streams.pop(0)(request)
                return answer
            await asyncio.Event().wait()
        self.asked.append("list")
        items = [pod(name, "1") for name in self.pods]
        return web.json_response({"metadata": {"resourceVersion": "10"}, "items": items})

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Cluster]:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        cluster = Cluster(Access(f"http://127.0.0.1:{port}", ssl.create_default_context(), nobody))
        try:
            yield cluster
        finally:
            await cluster.close()
            await runner.cleanup()


async def nobody() -> str:
    return ""


def pod(name: str, version: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": version}}


def lines(*events: Any) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def told(type: str, version: str, name: str = "a") -> dict[str, Any]:
    return {"type": type, "object": pod(name, version)}


def stream(body: bytes = b"", cut: bool = False) -> Callable[[web.Request], Any]:
    """A stream that says `body`, and ends in order or is cut."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(body)
        if cut:
            assert request.transport is not None
            request.transport.abort()
        return response

    return answer


def status(code: int) -> Callable[[web.Request], Any]:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"kind": "Status", "code": code, "message": "scripted"}, status=code)

    return answer


def error(code: int) -> dict[str, Any]:
    return {"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "scripted"}}


def seen(script: Script, asked: int) -> list[str]:
    """The changes until the watch has asked so often."""

    async def collect() -> list[str]:
        found: list[str] = []

        async def follow(cluster: Cluster) -> None:
            async for change in cluster.watch(PODS, None):
                found.append(name_of(change))  # noqa: PERF401 - it never ends

        async with script.served() as cluster:
            task = asyncio.ensure_future(follow(cluster))
            async with asyncio.timeout(20):
                while len(script.asked) < asked and not task.done():
                    await asyncio.sleep(0.01)
            assert not task.done(), task.exception()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return found

    return asyncio.run(collect())


def name_of(change: Change) -> str:
    return f"{change.type} {change.object.get('metadata', {}).get('name', '')}".strip()


TROUBLES = {
    "cut": stream(lines(told("ADDED", "11")), cut=True),
    "ended": stream(lines(told("ADDED", "11"))),
    "error 500": stream(lines(told("ADDED", "11"), error(500))),
    "error 504": stream(lines(told("ADDED", "11"), error(504))),
    "garbage": stream(lines(told("ADDED", "11")) + b'{"type": "ADDED", "obj'),
    "no object": stream(lines(told("ADDED", "11"), {"type": "ADDED"})),
    "no change": stream(lines(told("ADDED", "11"), ["ADDED"])),
    "null": stream(lines(told("ADDED", "11"), {"type": "ADDED", "object": None})),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_stream_goes_on_from_where_it_was(trouble: str) -> None:
    """However it ends: one list in all, no change twice, none left out."""
    script = Script(["a"], [TROUBLES[trouble], stream(lines(told("MODIFIED", "12")))])

    assert seen(script, asked=4) == ["LISTED a", "ADDED a", "MODIFIED a"]
    assert script.asked == ["list", "10", "11", "12"]


@pytest.mark.parametrize("code", [429, 500, 503, 403])
def test_a_watch_that_is_refused_is_asked_for_again(code: int) -> None:
    """From the same version: a busy server need not list everything on top."""
    script = Script(["a"], [status(code), status(code), stream(lines(told("ADDED", "11")))])

    assert seen(script, asked=5) == ["LISTED a", "ADDED a"]
    assert script.asked == ["list", "10", "10", "10", "11"]


def test_a_bookmark_moves_the_place_and_tells_nothing() -> None:
    """Hours of silence cost no list: the version to go on from is never old."""
    script = Script([], [stream(lines(told("BOOKMARK", "400")))])

    assert seen(script, asked=3) == []
    assert script.asked == ["list", "10", "400"]


@pytest.mark.parametrize("gone", [status(410), stream(lines(error(410)))], ids=["status", "event"])
def test_a_version_that_is_forgotten_is_listed_once_and_told(gone: Callable[[web.Request], Any]) -> None:
    """RELISTED follows what was listed: what was deleted in between stands in no list. The first list is not told."""
    script = Script(["a"], [gone])

    assert seen(script, asked=4) == ["LISTED a", "LISTED a", "RELISTED"]
    assert script.asked == ["list", "10", "list", "10"]


def test_a_change_that_is_too_long_is_passed_over_by_a_list() -> None:
    """Asked for again, the stream would break there again."""
    script = Script(["a"], [stream(lines(told("ADDED", "11", "x" * 2**23)))])

    assert seen(script, asked=4) == ["LISTED a", "LISTED a", "RELISTED"]


def test_a_stream_that_breaks_once_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is lost by it. One that breaks each time is."""
    caplog.set_level(logging.WARNING)
    seen(Script(["a"], [TROUBLES["cut"], TROUBLES["ended"]]), asked=4)
    assert caplog.messages == []
    seen(Script(["a"], [TROUBLES["cut"], TROUBLES["cut"]]), asked=4)
    assert len(caplog.messages) == 1
