"""What a running stage says about itself: its progress, and a thread that serves it as JSON and as Prometheus metrics.

It decides nothing about the run. Whatever asks, however often, must neither slow nor break the stage: an update is one
assignment, the server runs in daemon threads, at most a few at once, and its errors end with the request.
"""

import errno
import json
import logging
import math
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from finetune_api import labels
from finetune_api.events import ProgressReport
from finetune_api.stages import StageName

log = logging.getLogger(__name__)

METRICS = {
    "step": ("finetune_trainer_step", "Optimizer steps done over all attempts (prepare: records; publish: files)"),
    "total_steps": ("finetune_trainer_total_steps", "The same at the end; 0 while unknown"),
    "epoch": ("finetune_trainer_epoch", "Passes over the data done"),
    "loss": ("finetune_trainer_loss", "Mean training loss since the last report"),
    "eval_loss": ("finetune_trainer_eval_loss", "Latest validation loss"),
    "learning_rate": ("finetune_trainer_learning_rate", "Current learning rate"),
    "tokens_per_second": ("finetune_trainer_tokens_per_second", "Tokens a second, padding excluded"),
    "checkpoint_step": ("finetune_trainer_checkpoint_step", "Step of the latest complete checkpoint"),
}
"""Field of the progress → name and help of its metric."""
ALL_INTERFACES = "::"
"""Of IPv6 and, by the same socket, of IPv4: a cluster's pods may have either alone."""
NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""The kernel was built without it, or it is switched off."""
CONNECTIONS = 8
"""Requests served at once; more are turned away."""
PATIENCE_SECONDS = 5
"""How long a client may take."""


class Progress:
    """The progress of one stage. `update` from the stage's thread; `snapshot` from any."""

    def __init__(self, stage: StageName) -> None:
        self._report = ProgressReport(stage=stage)

    def update(self, **fields: Any) -> None:
        """Set fields of ProgressReport by their Python names; what is not finite is reported as absent."""
        known = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }
        self._report = self._report.model_copy(update=known)

    def snapshot(self) -> ProgressReport:
        """The latest progress."""
        return self._report


class Server:
    """Serves a Progress over HTTP until closed; `port` is the one that it got."""

    def __init__(self, progress: Progress, port: int, host: str = ALL_INTERFACES) -> None:
        handler = _handler(progress)
        try:
            self._server = _HttpServer((host, port), handler)
        except OSError as error:
            if host != ALL_INTERFACES or error.errno not in NO_IPV6:
                raise
            self._server = _HttpServer(("0.0.0.0", port), handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="progress", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def serve(progress: Progress, port: int, host: str = ALL_INTERFACES) -> Server | None:
    """Serve on `port` of `host`; port 0 is off. A port that cannot be had costs the page, never the run."""
    if port == 0:
        return None
    try:
        return Server(progress, port, host)
    except OSError as error:
        log.warning("no progress page: port %d: %s", port, error.strerror)
        return None


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer's: that asks DNS for the host's name, which may take long, and nobody reads it.
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client of the progress page left", exc_info=True)  # noqa: LOG014 - socketserver handles one


def _handler(progress: Progress) -> type[BaseHTTPRequestHandler]:
    registry = CollectorRegistry()
    registry.register(_Collector(progress))

    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE_SECONDS

        def do_GET(self) -> None:
            if self.path == labels.PROGRESS_PATH:
                self._answer("application/json", json.dumps(progress.snapshot().to_wire()).encode())
            elif self.path == labels.METRICS_PATH:
                self._answer("text/plain; version=0.0.4; charset=utf-8", generate_latest(registry))
            else:
                self.send_error(404)

        def _answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Requests are not worth a line of the stage's log."""

    return Handler


class _Collector:
    """Reads the progress when it is scraped, so that an update costs nothing more."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def collect(self) -> Iterator[Metric]:
        report = self._progress.snapshot()
        for field, (name, documentation) in METRICS.items():
            value = getattr(report, field)
            if value is not None:
                family = GaugeMetricFamily(name, documentation, labels=["stage"])
                family.add_metric([report.stage], value)
                yield family
