"""A proxy in front of the real API server that fails in the ways that networks and busy servers do.

It decides by a seeded dice which request suffers which fault. What the server does, the server does.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import Counter
from pathlib import Path
from threading import Event, Thread

import aiohttp
from aiohttp import web

from cluster.control_plane import ControlPlane, free_port

FAULTS = ("500", "503", "429", "reset", "lost answer", "slow")
PASSED_ON = ("Content-Type", "User-Agent", "Accept")


class FaultProxy:
    """Serves on 127.0.0.1 from a thread of its own. `rate` is the share of requests that suffer."""

    def __init__(self, plane: ControlPlane, rate: float, seed: int = 0) -> None:
        self._rate = rate
        self.injected: Counter[str] = Counter()
        self.port = free_port()
        self._server = plane.url
        self._dice = random.Random(seed)
        keys = plane.authority
        self._context = ssl.create_default_context(cafile=keys.certificate("ca"))
        self._context.load_cert_chain(keys.certificate("admin"), keys.key("admin"))
        self._loop = asyncio.new_event_loop()
        self._up = Event()
        self._thread = Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        self._up.wait(10)

    def write_kubeconfig(self, path: Path) -> Path:
        """A kubeconfig with which everything goes through here."""
        cluster = f"{{name: c, cluster: {{server: 'http://127.0.0.1:{self.port}'}}}}"
        context = "{name: c, context: {cluster: c, user: c}}"
        path.write_text(
            f"{{apiVersion: v1, kind: Config, current-context: c, clusters: [{cluster}], contexts: [{context}], "
            "users: [{name: c, user: {}}]}"
        )
        return path

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        connector = aiohttp.TCPConnector(ssl=self._context, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            runner = web.AppRunner(web.Application(), handle_signals=False, shutdown_timeout=0.1)
            runner.app.router.add_route("*", "/{path:.*}", self._handle)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
            self._up.set()
            await self._over.wait()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        fault = self._dice.choice(FAULTS) if self._dice.random() < self._rate else ""
        if fault:
            self.injected[fault] += 1
        if fault in ("500", "503", "429"):
            headers = {"Retry-After": "1"} if fault == "429" else {}
            return web.json_response({"kind": "Status", "message": "injected"}, status=int(fault), headers=headers)
        if fault == "reset":
            return self._reset(request)
        if fault == "slow":
            await asyncio.sleep(2)
        return await self._forward(request, loses_answer=fault == "lost answer")

    def _answered(self, request: web.Request) -> None:
        """The server began to answer, and whoever asked knows."""

    def _reset(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _forward(self, request: web.Request, loses_answer: bool) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        url = self._server + request.path_qs
        async with self._session.request(
            request.method, url, headers=headers, data=await request.read() or None
        ) as answer:
            if loses_answer:
                await asyncio.sleep(0.05)
                return self._reset(request)
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            self._answered(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response
