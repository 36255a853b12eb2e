"""The operator's process: kopf as its shell, a work queue as its heart.

kopf watches FineTuneJobs and ends the process when that cannot go on. Of its handlers only `on.event` is used: the
others keep their state in annotations and finalizers of the user's objects. This is the only module that imports kopf.
"""

import asyncio
import logging
import random
import signal
import sys
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Any

import aiohttp
import uvloop

from finetune_api import labels
from finetune_operator import lease, logs, metrics, probes, streams, watches
from finetune_operator.cluster import ApiError, Cluster, NoCluster, NotFound, connect
from finetune_operator.departed import Departed
from finetune_operator.lease_store import LeaseObject
from finetune_operator.metrics import Key
from finetune_operator.observe import FINETUNE_JOBS
from finetune_operator.places import Places
from finetune_operator.progress import ProgressReader, page_session
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile import Reconciler, StatusWriter
from finetune_operator.settings import Settings, parse
from finetune_operator.status import is_told_final

# kopf looks for the official client, to take its objects for owners. We have none to give, and that import takes longer
# than all others together.
_client = sys.modules.get("kubernetes")
sys.modules["kubernetes"] = None  # type: ignore[assignment]
import kopf  # noqa: E402

del sys.modules["kubernetes"]
if _client is not None:
    sys.modules["kubernetes"] = _client

log = logging.getLogger(__name__)

Object = dict[str, Any]

APPLY_DEFINITION = "kubectl apply --server-side --force-conflicts -f crds/finetunejobs.yaml"
"""Without force it is refused where another manager, as Helm, has written an older one."""
RECONCILE_SECONDS = 120
"""A pass that takes longer, though a webhook held up all three creations, hangs: it is ended and tried again."""


class Backoffs:
    """Seconds between tries of kopf's requests, without end: with one, kopf would give up and the operator be blind."""

    def __iter__(self) -> Iterator[float]:
        delay = 0.5
        while True:
            yield random.uniform(0.2, delay)
            delay = min(5, delay * 2)


class NoDiffs(kopf.DiffBaseStorage):
    """What an object was before, for handlers of changes. There are none: kopf is not to copy each object for them."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


class Operator:
    """One process. `run` ends when it is told to stop, and raises when it cannot go on."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._queue: WorkQueue[Key] = WorkQueue(monotonic)
        self._new = watches.NewJobs()
        self._live: set[Key] = set()
        self._dependents = watches.Dependents()

    async def run(self) -> bool:
        """Serve, if need be after waiting for the lead; False when the lead was lost."""
        if not self._settings.leader_elect:
            await self._serve()
            return True
        store = LeaseObject(self._cluster, self._settings.lease_namespace, self._settings.lease_name)
        elector = lease.Elector(store, self._settings.identity)
        try:
            return await elector.lead(self._serve)
        finally:
            await elector.release()

    async def _serve(self) -> None:
        metrics.leading.set(1)
        metrics.watch_queue(lambda: len(self._queue))
        writer = StatusWriter(self._cluster)
        async with page_session() as pages, asyncio.TaskGroup() as group:
            reader = ProgressReader(pages, self._settings, writer.progress, self._queue.add)
            departed = Departed()
            places = Places(self._settings.workers)
            reconciler = Reconciler(self._cluster, self._settings, reader, writer, departed, self._note, places)
            background = [
                self._queue.keep_time(),
                self._sweep(),
                reader.run(),
                *watches.watchers(self._cluster, self._settings, departed, self._queue.add_after, self._wake_all),
                # Those that have a place, and as many that wait aside.
                *(self._work(reconciler, places) for _ in range(2 * self._settings.workers)),
            ]
            tasks = [group.create_task(one) for one in background]
            log.info("serving %s", ", ".join(self._settings.namespaces) or "all namespaces")
            # A task too: who loses the lead stops working at once, not after kopf has ended in order.
            await group.create_task(
                kopf.operator(
                    registry=self._registry(),
                    settings=_kopf_settings(),
                    clusterwide=not self._settings.namespaces,
                    namespaces=self._settings.namespaces,
                    standalone=True,
                )
            )
            for task in tasks:
                task.cancel()

    def _registry(self) -> kopf.OperatorRegistry:
        """What kopf is to call: the login with our own session, and one function for each event."""
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            watch = streams.steady_watch(f"/{labels.PLURAL}", self._wake_all)
            return kopf.AiohttpSession(server=self._cluster.server, aiohttp_session=self._cluster.new_session(watch))

        @kopf.on.event(labels.GROUP, labels.VERSION, labels.PLURAL, registry=registry)
        async def event(event: kopf.RawEvent, **_: Any) -> None:
            self._take(event["type"], event["object"])

        return registry

    def _take(self, type: str | None, body: Mapping[str, Any]) -> None:
        """Queue a job that is new, was edited, has ended or is seen in a list, and the jobs that wait for it when it
        appears, ends or goes. What is known of a job is noted by the pass: the events of two jobs of one name, one
        after the other, may come in any order."""
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        has_ended = is_told_final(body)
        self._new.note(key, type, body)
        self._queue.add(key)
        if has_ended or type in ("ADDED", "DELETED"):
            for dependent in self._dependents.of(key):
                self._queue.add(dependent)

    def _note(self, key: Key, spec: Object | None) -> None:
        """What a pass found: the spec of a job that may still change; None where it has ended or is gone."""
        if spec is None:
            self._live.discard(key)
            self._dependents.forget(key)
        else:
            self._live.add(key)
            self._dependents.note(key, spec)

    def _wake_all(self) -> None:
        """Queue every job that may still change: something was listed anew, and what went meanwhile is in no list."""
        for key in self._live:
            self._queue.add_after(key, watches.SETTLE_SECONDS)

    async def _work(self, reconciler: Reconciler, places: Places) -> None:
        while True:
            key = await self._queue.get()
            async with places:
                with logs.about(*key), metrics.reconcile_seconds.time():
                    await self._once(reconciler, key)

    async def _once(self, reconciler: Reconciler, key: Key) -> None:
        try:
            async with asyncio.timeout(RECONCILE_SECONDS):
                after = await reconciler.reconcile(key, self._new.take(key))
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as problem:
            metrics.reconcile_errors.inc()
            log.warning("tried again in %.1f s: %s", self._queue.retry(key), problem or repr(problem))
        except Exception:
            metrics.reconcile_errors.inc()
            log.exception("tried again in %.1f s", self._queue.retry(key))
        else:
            self._queue.succeeded(key)
            if after is not None:
                self._queue.add_after(key, after)
        finally:
            self._queue.done(key)

    async def _sweep(self) -> None:
        """Look at every live job from time to time, whatever was or was not told about it."""
        while True:
            await asyncio.sleep(self._settings.sweep_seconds * random.uniform(0.8, 1.2))
            for key in self._live:
                self._queue.add_after(key, random.uniform(0, self._settings.sweep_seconds / 2))


def _kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.persistence.diffbase_storage = NoDiffs()
    settings.networking.error_backoffs = Backoffs()
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.watching.connect_timeout = 5
    settings.watching.server_timeout = 290
    settings.watching.client_timeout = 320
    settings.watching.inactivity_timeout = 75
    settings.watching.chunk_size = 500
    return settings


async def _run(settings: Settings) -> int:
    """The exit code."""
    _end_on_signals()
    try:
        cluster = await connect()
    except NoCluster as problem:
        log.error("%s", problem)
        return 2
    connected = asyncio.Event()
    runner = await probes.serve(settings.port, connected.is_set)
    try:
        await _wait_for_definition(cluster, settings)
        connected.set()
        return 0 if await Operator(cluster, settings).run() else 1
    except asyncio.CancelledError:
        return 0
    except Exception:
        log.exception("the operator ends: it will be started anew")
        return 1
    finally:
        await runner.cleanup()
        await cluster.close()


def _end_on_signals() -> None:
    """End in order while nothing is served yet: a standby, as PID 1, would ignore SIGTERM. Then kopf listens."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def _wait_for_definition(cluster: Cluster, settings: Settings) -> None:
    """Return once FineTuneJobs can be listed; say what is missing meanwhile."""
    namespace = settings.namespaces[0] if settings.namespaces else None
    while True:
        try:
            await cluster.request("GET", FINETUNE_JOBS.path(namespace), {"limit": "1"})
            return
        except NotFound:
            log.error("the CustomResourceDefinition is missing: %s", APPLY_DEFINITION)
        except (ApiError, aiohttp.ClientError, TimeoutError) as problem:
            log.error("FineTuneJobs cannot be listed: %s", problem or repr(problem))
        await asyncio.sleep(2)


def main() -> None:
    settings = parse(sys.argv[1:])
    logs.configure(settings.log_level)
    try:
        sys.exit(uvloop.run(_run(settings)))
    except KeyboardInterrupt:
        sys.exit(130)
