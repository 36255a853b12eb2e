"""The operator's HTTP server: /metrics, /healthz and /readyz."""

import socket
from collections.abc import Callable

from aiohttp import web

from finetune_operator import metrics


async def serve(port: int, is_ready: Callable[[], bool]) -> web.AppRunner:
    """Serve on all addresses until the runner is cleaned up. A standby replica is ready too: it only waits."""

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(_: web.Request) -> web.Response:
        ready = is_ready()
        return web.Response(text="ok" if ready else "not connected yet", status=200 if ready else 503)

    app = web.Application()
    app.add_routes([web.get("/metrics", show_metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, _listener(port)).start()
    return runner


def _listener(port: int) -> socket.socket:
    """One socket for IPv6 and IPv4; for IPv4 alone where the kernel has no IPv6, or it is switched off."""
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    except (OSError, ValueError):
        return socket.create_server(("", port), backlog=128)
