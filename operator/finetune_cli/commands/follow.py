"""The verbs that ask a cluster: watch, logs, describe and restart.

It decides what has changed, how much failure is borne, and when there is nothing more to see. Cluster, clock and
waiting come from outside.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from finetune_api import labels
from finetune_api.reasons import Phase
from finetune_api.text import printable_lines
from finetune_cli.cluster import ClusterError, Jobs, NotFoundError, Object
from finetune_cli.stored import StoredJob, stored_job
from finetune_cli.views import description, job_table
from finetune_cli.views.terminal import can_redraw, err, out, plain

WAIT_SECONDS = 1.0
TIRED = 30
"""Connections in a row that may fail (an API server restarts) before watching ends."""


@dataclass
class Follower:
    """Follows jobs of one namespace, or of all if `namespace` is None."""

    cluster: Jobs
    namespace: str | None
    console: Console = field(default_factory=lambda: out)
    wait: Callable[[], None] = lambda: time.sleep(WAIT_SECONDS)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @property
    def scope(self) -> str:
        return self.namespace or self.cluster.namespace

    def job(self, name: str) -> StoredJob:
        """The job, or NotFoundError with the names of similar ones."""
        return stored_job(self._body(name))

    def _body(self, name: str) -> Object:
        try:
            return self.cluster.job(self.scope, name)
        except NotFoundError:
            names = [str(body["metadata"]["name"]) for body in self.cluster.jobs(self.scope)]
            raise NotFoundError(_no_job(name, self.scope, names)) from None

    def describe(self, name: str) -> int:
        self.console.print(description.description(self.job(name), self.now()))
        return 0

    def watch(self, name: str | None) -> int:
        """Until the job ends (0: succeeded, 1: failed), or for ever where there is no name."""
        if name is not None:
            self.job(name)
        return self._on_terminal(name) if can_redraw(self.console) else self._in_lines(name)

    def _states(self, name: str | None) -> Iterator[list[StoredJob]]:
        """The jobs, and again after each change. Bears failures of a cluster that was there before."""
        failures, has_answered = 0, False
        while True:
            try:
                for bodies in self.cluster.changes(self.scope if name else self.namespace, name):
                    failures, has_answered = 0, True
                    if name is not None and not bodies:
                        raise NotFoundError(f"the FineTuneJob {name} was deleted")
                    yield [stored_job(body) for body in bodies]
            except NotFoundError:
                raise
            except ClusterError:
                failures += 1
                if failures >= TIRED or not has_answered:
                    raise
            self.wait()

    def _on_terminal(self, name: str | None) -> int:
        jobs: list[StoredJob] | None = None

        def view() -> Group:  # asked for again and again: the time that passes is shown too
            return Group() if jobs is None else self._view(jobs, name)

        with Live(console=self.console, refresh_per_second=2, get_renderable=view) as live:
            for jobs in self._states(name):
                if name is not None and jobs[0].has_ended:
                    live.refresh()
                    break
        return ending(jobs[0]) if jobs else 1

    def _view(self, jobs: list[StoredJob], name: str | None) -> Group:
        now = self.now()
        if not jobs:
            return Group(plain(f"no FineTuneJobs in {self.namespace or 'any namespace'} yet", "dim"))
        found = job_table.table(jobs, now, all_namespaces=self.namespace is None and name is None)
        if name is None:
            return Group(found)
        status = jobs[0].status
        failed = description.failure(status)
        parts = [description.conditions(status.conditions, now)] if status.conditions else []
        return Group(found, Text(), *parts, *([failed] if failed is not None else []))

    def _in_lines(self, name: str | None) -> int:
        shown = dict[str, str]()
        for jobs in self._states(name):
            for job in jobs:
                key, news = f"{job.metadata.namespace}/{job.metadata.name}", job_table.news(job)
                if shown.get(key) != news:
                    self.console.print(job_table.line(job), markup=False)
                    shown[key] = news
            if name is not None and jobs[0].has_ended:
                failed = description.failure(jobs[0].status)
                if failed is not None:
                    self.console.print(failed)
                return ending(jobs[0])
        return 1

    def restart(self, name: str) -> int:
        """Raise spec.restarts by one, and say what follows from it."""
        stored = self._body(name)
        restarts = int(stored["spec"].get("restarts") or 0) + 1
        version = {"resourceVersion": stored["metadata"]["resourceVersion"]}  # nobody else has raised it meanwhile
        changed = self.cluster.patch(self.scope, name, {"metadata": version, "spec": {"restarts": restarts}})
        if changed["spec"].get("restarts") != restarts:
            raise ClusterError("the cluster's definition of FineTuneJob has no spec.restarts: upgrade the CRD")
        self.console.print(description.restarting(stored_job(stored)), markup=False)
        return 0

    def logs(self, name: str, stage: str | None, follow: bool) -> int:
        """Print the log of the newest pod that has started, of all stages or of one. With `follow` wait for it, and go
        on to those that come after it, until the job ends."""
        told, printed, since = False, set[str](), ""
        while True:
            job = self.job(name)
            pod = newest_started(self.cluster.pods(self.scope, _selector(job, stage)))
            if pod is not None and _created(pod) >= since and pod["metadata"]["name"] not in printed:
                printed.add(pod["metadata"]["name"])
                since = _created(pod)
                self._print_log(pod, follow)
            elif not follow or job.has_ended:
                return self._no_pod(job, stage, bool(printed))
            elif not told and not printed:
                told = True
                err.print(plain(f"waiting for a pod of {name} to start …", "dim"))
            if not follow and printed:
                return 0
            self.wait()

    def _print_log(self, pod: Object, follow: bool) -> None:
        try:
            for line in self.cluster.log(self.scope, pod["metadata"]["name"], follow):
                self.console.print(printable_lines(line), markup=False, highlight=False)
        except NotFoundError:
            if not follow:
                raise
            err.print(plain(f"the pod {pod['metadata']['name']} is gone", "dim"))

    def _no_pod(self, job: StoredJob, stage: str | None, printed: bool) -> int:
        if printed:
            return 0
        which = f"stage {stage} of " if stage else ""
        phase = job.status.phase or "not seen by an operator"
        err.print(plain(f"no pod of {which}{job.metadata.name} has started ({phase})"))
        return 1


def ending(job: StoredJob) -> int:
    """The exit code of a job that has ended."""
    return 0 if job.status.phase == Phase.SUCCEEDED else 1


def newest_started(pods: list[Object]) -> Object | None:
    """The newest pod that has a log: its trainer runs or has run."""
    return max((pod for pod in pods if _has_started(pod)), key=_age_key, default=None)


def _age_key(pod: Object) -> tuple[str, bool, str]:
    """Grows with each pod of a job: they come one after the other, so of two of one second the newer one runs."""
    return _created(pod), "running" in _state(pod), pod["metadata"]["name"]


def _created(pod: Object) -> str:
    return str(pod["metadata"]["creationTimestamp"])


def _has_started(pod: Object) -> bool:
    return not {"running", "terminated"}.isdisjoint(_state(pod))


def _state(pod: Object) -> Object:
    """Of the trainer's container."""
    statuses = pod.get("status", {}).get("containerStatuses", ())
    return next((dict(one.get("state", {})) for one in statuses if one["name"] == labels.CONTAINER), {})


def _selector(job: StoredJob, stage: str | None) -> str:
    parts = {labels.JOB_LABEL: job.metadata.name, labels.JOB_UID_LABEL: job.metadata.uid}
    if stage:
        parts[labels.STAGE_LABEL] = stage
    return ",".join(f"{key}={value}" for key, value in parts.items())


def _no_job(name: str, namespace: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"no FineTuneJob {name} in namespace {namespace}: did you mean {' or '.join(near)}?"
    there = f"there are {', '.join(sorted(names)[:10])}" if names else "it has none"
    return f"no FineTuneJob {name} in namespace {namespace}: {there}. Another namespace: -n NAMESPACE"
