"""Turns what happens to the children of jobs, and to jobs that others wait for, into the keys of those it concerns.

It decides which changes can matter. A change that is overlooked is found by the sweep: nothing depends on seeing each.
Events are not watched: the API server keeps no cache of them, so each such watch is a load on etcd that it breaks off.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any

from finetune_api import labels
from finetune_api.spec.job_spec import jobs_named
from finetune_operator import observed_state
from finetune_operator.cluster import Change, Cluster
from finetune_operator.departed import Departed
from finetune_operator.metrics import Key
from finetune_operator.observe import JOBS, PODS
from finetune_operator.settings import Settings

OURS = f"{labels.MANAGED_BY_LABEL}={labels.MANAGED_BY}"
SETTLE_SECONDS = 0.1
"""A Kubernetes Job and its pod change together: one look serves both."""
BEARABLE_SECONDS = MappingProxyType({"Job": 20.0, "Pod": 40.0})
"""Nobody tells when a Kubernetes Job cannot make its pod, nor when no scheduler looks at a pod."""
LOOKS_PER_SECOND = 10
"""At what is silent in one namespace: most of all Jobs, after a burst that the Job controller does not keep up with.
Each look is half a dozen requests; other teams' jobs do not wait for them."""


class Silence:
    """Kubernetes Jobs that have made no pod, and pods that nobody has noticed: of neither anybody tells, so each is
    looked at in time, unless it is heard of before."""

    def __init__(self, look: Callable[[Key, float], None], bearable: Mapping[str, float] = BEARABLE_SECONDS) -> None:
        """`bearable` is for how many seconds nothing need be heard, by kind."""
        self._look = look
        self._bearable = bearable
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._next_at: dict[str, float] = {}

    def note(self, kind: str, change: Change) -> None:
        """What was told of a Kubernetes Job or a pod of ours."""
        body, key = change.object, _labelled(change)
        if (timer := self._timers.pop(body["metadata"]["uid"], None)) is not None:
            timer.cancel()
        is_silent = observed_state.lacks_a_pod(body) if kind == "Job" else _is_unnoticed(body)
        if is_silent and key is not None and change.type != "DELETED":
            loop, uid = asyncio.get_running_loop(), body["metadata"]["uid"]
            self._timers[uid] = loop.call_later(self._bearable[kind], self._end, uid, key)

    def _end(self, uid: str, key: Key) -> None:
        del self._timers[uid]
        now, namespace = asyncio.get_running_loop().time(), key[0]
        at = max(now, self._next_at.get(namespace, now))
        self._next_at[namespace] = at + 1 / LOOKS_PER_SECOND
        self._look(key, at - now + SETTLE_SECONDS)


class NewJobs:
    """The objects of jobs that were just created, as they were told: a first pass may begin from them, as nothing was
    written of these yet."""

    def __init__(self) -> None:
        self._told: dict[Key, Mapping[str, Any]] = {}

    def note(self, key: Key, type: str | None, body: Mapping[str, Any]) -> None:
        """What is told of a job. Of two of one name, the end of the first may be told after the second began."""
        before = self._told.get(key)
        is_same = before is not None and before["metadata"]["uid"] == body["metadata"]["uid"]
        if type != "DELETED" and "status" not in body and (type == "ADDED" or is_same):
            self._told[key] = body
        elif is_same:
            del self._told[key]

    def take(self, key: Key) -> dict[str, Any] | None:
        """The job without status, once; None where it has to be read."""
        told = self._told.pop(key, None)
        return dict(told) if told is not None else None


class Dependents:
    """Which jobs wait for which: what one job publishes, another may start from.

    It knows what was told it last, and forgets jobs that have ended. Names may be those of jobs that do not exist.
    """

    def __init__(self) -> None:
        self._named: dict[Key, frozenset[Key]] = {}

    def note(self, key: Key, spec: Mapping[str, Any]) -> None:
        """A job that has not ended, as its object says it."""
        named = frozenset((key[0], name) for name in jobs_named(spec))
        if named:
            self._named[key] = named

    def forget(self, key: Key) -> None:
        self._named.pop(key, None)

    def of(self, key: Key) -> list[Key]:
        """The jobs that name this one."""
        return [dependent for dependent, named in self._named.items() if key in named]


def watchers(
    cluster: Cluster,
    settings: Settings,
    departed: Departed,
    wake: Callable[[Key, float], None],
    wake_all: Callable[[], None],
) -> list[Coroutine[None, None, None]]:
    """What to run, each for ever: `wake` is called with a job's key and the seconds to wait for more news of it,
    `wake_all` when there may be news of any."""

    silence = Silence(wake)

    async def watcher(kind: str, changes: AsyncIterator[Change], key_of: Callable[[Change], Key | None]) -> None:
        async for change in changes:
            if change.type == "DELETED":
                departed.note(kind, change.object)
            if change.type == "RELISTED":
                wake_all()
                continue
            silence.note(kind, change)
            if (key := key_of(change)) is not None:
                wake(key, SETTLE_SECONDS)

    running = []
    for namespace in settings.namespaces or (None,):
        running.append(watcher("Job", cluster.watch(JOBS, namespace, OURS), key_of_job))
        running.append(watcher("Pod", cluster.watch(PODS, namespace, OURS), key_of_pod))
    return running


def key_of_job(change: Change) -> Key | None:
    """A Kubernetes Job that has something to say: that it was admitted, ended or deleted."""
    is_mute = (
        not change.object.get("status", {}).get("conditions") and "deletionTimestamp" not in change.object["metadata"]
    )
    return None if is_mute and change.type in ("ADDED", "MODIFIED") else _labelled(change)


def key_of_pod(change: Change) -> Key | None:
    """A pod that has something to say. A fresh one has not."""
    return None if change.type == "ADDED" and _is_unnoticed(change.object) else _labelled(change)


def _is_unnoticed(pod: Mapping[str, Any]) -> bool:
    """Whether no scheduler and no kubelet has said anything of a pod."""
    status = pod.get("status", {})
    return not status.get("conditions") and not status.get("containerStatuses") and status.get("phase") == "Pending"


def _labelled(change: Change) -> Key | None:
    metadata = change.object["metadata"]
    job = metadata.get("labels", {}).get(labels.JOB_LABEL)
    return (metadata["namespace"], job) if job else None
