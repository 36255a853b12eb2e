"""A proxy in front of the real API server for those who watch: it notes lists, and breaks streams when told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from cluster.control_plane import ControlPlane
from integration.fault_proxy import FaultProxy

CHILDREN = "app.kubernetes.io/managed-by"
"""Part of the selector of the operator's lists of children; its sweep asks for one job's by another."""


class WatchProxy(FaultProxy):
    """Loses nothing by itself. `lists` and `watches` have each that was asked for, by the plural."""

    def __init__(self, plane: ControlPlane) -> None:
        self.lists: list[str] = []
        self.watches: list[tuple[str, str]] = []
        """Plural and resourceVersion."""
        self.opened: list[str] = []
        """The watches that the server answered."""
        self._answers: dict[str, list[web.Response | bytes]] = {}
        self._open: dict[int, web.Request] = {}
        self._is_closed = False
        super().__init__(plane, rate=0)

    def stop(self) -> None:
        self.close()
        super().stop()

    def cut(self) -> int:
        """Break each stream that is open; returns how many were."""
        return self._call(lambda: [self._reset(request) for request in list(self._open.values()) if request.transport])

    def answer_next(self, plural: str, body: bytes, status: int = 200) -> None:
        """What the next watch of these objects gets instead of the server's stream."""
        self._answers.setdefault(plural, []).append(web.Response(body=body, status=status))

    def close(self) -> None:
        """Nothing gets through until `open`: whatever happens now is missed."""
        self._is_closed = True
        self.cut()

    def open(self) -> None:
        self._is_closed = False

    def _call(self, act: Callable[[], list[Any]]) -> int:
        async def run() -> int:
            return len(act())

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(5)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self._is_closed:
            return self._reset(request)
        plural = request.path.rpartition("/")[2]
        selector = request.query.get("labelSelector", "")
        if "watch" in request.query:
            return await self._watched(request, plural)
        if request.method == "GET" and (plural == "finetunejobs" or CHILDREN in selector):
            # The operator looks with limit=1 whether the definition is there.
            self.lists += [plural] if request.query.get("limit") != "1" else []
        return await super()._handle(request)

    async def _watched(self, request: web.Request, plural: str) -> web.StreamResponse:
        self.watches.append((plural, request.query["resourceVersion"]))
        if answers := self._answers.get(plural):
            return answers.pop(0)
        try:
            return await super()._handle(request)
        finally:
            self._open.pop(id(request), None)

    def _answered(self, request: web.Request) -> None:
        if "watch" in request.query:
            self._open[id(request)] = request
            self.opened.append(request.path.rpartition("/")[2])


def error(code: int) -> bytes:
    """The line with which a server ends a stream."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "scripted", "code": code}
    return json.dumps({"type": "ERROR", "object": status}, separators=(",", ":")).encode() + b"\n"
