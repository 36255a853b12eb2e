"""Reads the progress pages of running pods, and shows what they say in `status.progress` and in the metrics.

A page is data from a pod: bounded in size and time, checked against the contract, never followed elsewhere. What a
trainer does or fails to do costs the operator one bounded request per interval. Nothing here ends a pod.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic

import aiohttp
from pydantic import ValidationError

from finetune_api import labels
from finetune_api import status as api
from finetune_api.events import PROGRESS_LIMIT, ProgressReport
from finetune_api.reasons import Reason
from finetune_api.stages import PUBLISH, TRAIN, StageName
from finetune_operator import logs, metrics
from finetune_operator.cluster import ApiError
from finetune_operator.metrics import Key
from finetune_operator.observed_state import Health, timestamp
from finetune_operator.settings import Settings
from finetune_operator.status import progress_of

log = logging.getLogger(__name__)

PAGE_TIMEOUT = aiohttp.ClientTimeout(total=2)
PAGES_PER_SECOND = 50
PAGES_AT_ONCE = 64
LONGEST_PAUSE = 30.0
"""Seconds between two readings of a pod that does not answer."""
FEW_JOBS = 20
SAMPLES = 100


def read_interval(live: int, shortest: float) -> float:
    """Seconds between two readings of one pod, so that all pods together stay under the rate."""
    return max(shortest, live / PAGES_PER_SECOND)


def diagnose(
    report: ProgressReport | None, silent_for: float, still_for: float, interval: float, settings: Settings
) -> Health | None:
    """What is wrong with a pod whose last page came `silent_for` seconds ago and said the same for `still_for` seconds.

    Three pages have to be missing, or to say the same: with many jobs one alone takes longer than the settings' limits.
    """
    silent_after, stalled_after = (max(one, 3 * interval) for one in (settings.silent_after, settings.stalled_after))
    if silent_for > silent_after:
        return Health(Reason.NO_REPORTS, f"no usable progress page for {silent_after:.0f} seconds")
    if report is not None and report.activity == "training" and still_for > stalled_after:
        return Health(Reason.STALLED, f"at step {report.step} for {stalled_after:.0f} seconds")
    return None


def write_interval(live: int) -> float:
    """Seconds between two writes of one job's progress: at most 20 a second over all jobs, once there are many."""
    return 3 if live <= FEW_JOBS else max(30, live / 20)


def eta(samples: Sequence[tuple[float, int]], total: int, now: float) -> int | None:
    """Seconds to the end, from the times at which the step count was seen to rise since the run last (re)started.

    None while fewer than two such times are known. Steps of an earlier attempt never count: only differences do.
    """
    if len(samples) < 2 or not total:
        return None
    (start, first), (end, last) = samples[0], samples[-1]
    seconds_per_step = (end - start) / (last - first)
    return max(0, round((total - last) * seconds_per_step - (now - end)))


@dataclass(frozen=True)
class Target:
    """A running pod, and the job that it works for."""

    job_uid: str
    pod_uid: str
    address: str
    stage: StageName
    port: int = 0
    """Of its page, as the pod says it: it was made with the settings of its time. 0: it does not say."""


@dataclass
class _Watched:
    """What is known of one target since it is read."""

    target: Target
    answered_at: float
    moved_at: float
    due_at: float = 0.0
    failures: int = 0
    is_in_flight: bool = False
    report: ProgressReport | None = None
    health: Health | None = None
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    written: api.Progress | None = None
    written_at: float = -1e9


class BadPage(Exception):
    """A page that cannot be used; the text is one word for the metrics."""


Write = Callable[[Key, str, api.Progress], Awaitable[None]]
"""Shows the progress of the job with that key and uid."""


class ProgressReader:
    """Reads the pages of all targets. `write` shows progress in the cluster, `wake` asks for a reconcile."""

    def __init__(
        self, session: aiohttp.ClientSession, settings: Settings, write: Write, wake: Callable[[Key], None]
    ) -> None:
        self._session = session
        self._settings = settings
        self._write = write
        self._wake = wake
        self._watched: dict[Key, _Watched] = {}
        self._slots = asyncio.Semaphore(PAGES_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def track(self, key: Key, target: Target | None) -> None:
        """Read this target's pages from now on; None: the job has no running pod."""
        watched = self._watched.get(key)
        if target is None:
            if watched is not None:
                del self._watched[key]
                metrics.drop_progress(key)
        elif watched is None or watched.target != target:
            self._watched[key] = _Watched(target, answered_at=monotonic(), moved_at=monotonic())

    def health(self, key: Key) -> Health | None:
        """What is wrong with the job's running pod; None while nothing is."""
        watched = self._watched.get(key)
        return watched.health if watched else None

    def reports(self, key: Key) -> dict[str, ProgressReport]:
        """The last page of the job's running pod, by the pod's uid."""
        watched = self._watched.get(key)
        return {watched.target.pod_uid: watched.report} if watched and watched.report else {}

    async def run(self) -> None:
        """Read what is due, for ever."""
        while True:
            now = monotonic()
            for key, watched in list(self._watched.items()):
                if watched.due_at <= now and not watched.is_in_flight:
                    watched.is_in_flight = True
                    task = asyncio.create_task(self._visit(key, watched))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(min(0.5, self._settings.progress_seconds / 4))

    async def _visit(self, key: Key, watched: _Watched) -> None:
        with logs.about(*key), self._in_flight(watched):
            async with self._slots:
                report = await self._page(watched)
            if self._watched.get(key) is not watched:
                return
            if report is not None:
                self._take(key, watched, report)
            health = self._diagnose(watched)
            if health != watched.health:
                watched.health = health
                self._wake(key)
            await self._show(key, watched)

    @contextmanager
    def _in_flight(self, watched: _Watched) -> Iterator[None]:
        try:
            yield
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as problem:
            log.warning("progress could not be written: %s", problem or repr(problem))
        except Exception:
            log.exception("reading progress")
        finally:
            watched.is_in_flight = False
            interval = self._interval()
            pause = min(LONGEST_PAUSE, interval * 2 ** min(watched.failures, 10))
            watched.due_at = monotonic() + max(interval, pause)

    async def _page(self, watched: _Watched) -> ProgressReport | None:
        try:
            report = await fetch(self._session, watched.target, watched.target.port or self._settings.trainer_port)
        except (aiohttp.ClientError, TimeoutError, OSError):
            metrics.progress_failures.labels("unreachable").inc()
        except BadPage as problem:
            metrics.progress_failures.labels(str(problem)).inc()
        else:
            watched.failures = 0
            return report
        watched.failures += 1
        return None

    def _take(self, key: Key, watched: _Watched, report: ProgressReport) -> None:
        now, before = monotonic(), watched.report
        watched.answered_at = now
        if before is None or (report.step, report.activity) != (before.step, before.activity):
            watched.moved_at = now
        if before is not None and report.step < before.step:
            watched.samples.clear()
        if before is not None and report.step != before.step and report.stage == TRAIN:
            watched.samples.append((now, report.step))
        watched.report = report
        metrics.note_progress(key, report, self._eta(watched))

    def _eta(self, watched: _Watched) -> int | None:
        if watched.report is None or watched.report.stage != TRAIN:
            return None
        return eta(watched.samples, watched.report.total_steps, monotonic())

    def _interval(self) -> float:
        return read_interval(len(self._watched), self._settings.progress_seconds)

    def _diagnose(self, watched: _Watched) -> Health | None:
        silent_for = monotonic() - watched.answered_at
        still_for = watched.answered_at - watched.moved_at
        return diagnose(watched.report, silent_for, still_for, self._interval(), self._settings)

    async def _show(self, key: Key, watched: _Watched) -> None:
        """Write what has changed, not more often than the interval."""
        # publish only counts files: the run's last loss is worth more to whoever looks.
        if watched.report is None or watched.report.stage == PUBLISH:
            return
        if monotonic() - watched.written_at < write_interval(len(self._watched)):
            return
        progress = progress_of(watched.report, self._eta(watched), "")
        if progress == watched.written:
            return
        watched.written_at = monotonic()
        shown = progress.model_copy(update={"updated_at": timestamp(datetime.now(UTC))})
        await self._write(key, watched.target.job_uid, shown)
        watched.written = progress


async def fetch(session: aiohttp.ClientSession, target: Target, port: int) -> ProgressReport:
    """One page; raises BadPage, or aiohttp's and asyncio's errors when there is none within the time."""
    host = f"[{target.address}]" if ":" in target.address else target.address
    url = f"http://{host}:{port}{labels.PROGRESS_PATH}"
    async with session.get(url, allow_redirects=False, timeout=PAGE_TIMEOUT) as response:
        if response.status != 200:
            raise BadPage("status")
        body = b""
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > PROGRESS_LIMIT:
                response.close()
                raise BadPage("size")
    try:
        report = ProgressReport.model_validate_json(body)
    except ValidationError:
        raise BadPage("content") from None
    if report.stage != target.stage:
        raise BadPage("stage")
    return report


def page_session() -> aiohttp.ClientSession:
    """A session for pods: no credentials, no cookies, no proxy, no decompression."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=PAGES_AT_ONCE),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )
