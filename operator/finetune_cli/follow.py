"""The verbs that look at a cluster: watch, logs and describe.

It decides how often to ask, what has changed, and when there is nothing more to see. Cluster, clock and waiting come
from outside.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from finetune_api import labels
from finetune_api.job import FineTuneJob
from finetune_api.reasons import Phase
from finetune_api.text import printable_lines
from finetune_cli import listing, report
from finetune_cli.cluster import ClusterError, Jobs, NotFoundError, Object
from finetune_cli.terminal import can_redraw, err, out, plain

POLL_SECONDS = 1.0
TIRED = 30
"""Polls in a row that may fail (an API server restarts) before watching ends."""


@dataclass
class Follower:
    """Follows jobs of one namespace, or of all if `namespace` is None."""

    cluster: Jobs
    namespace: str | None
    console: Console = field(default_factory=lambda: out)
    wait: Callable[[], None] = lambda: time.sleep(POLL_SECONDS)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @property
    def scope(self) -> str:
        return self.namespace or self.cluster.namespace

    def job(self, name: str) -> FineTuneJob:
        """The job, or NotFoundError with the names of similar ones."""
        try:
            return report.parsed(self.cluster.job(self.scope, name))
        except NotFoundError:
            names = [str(body["metadata"]["name"]) for body in self.cluster.jobs(self.scope)]
            raise NotFoundError(_no_job(name, self.scope, names)) from None

    def describe(self, name: str) -> int:
        self.console.print(report.description(self.job(name), self.now()))
        return 0

    def watch(self, name: str | None) -> int:
        """Until the job ends (0: succeeded, 1: failed), or for ever where there is no name."""
        if name is not None:
            self.job(name)
        return self._on_terminal(name) if can_redraw(self.console) else self._in_lines(name)

    def _jobs(self, name: str | None) -> list[FineTuneJob]:
        if name is not None:
            return [report.parsed(self.cluster.job(self.scope, name))]
        return [report.parsed(body) for body in self.cluster.jobs(self.namespace)]

    def _on_terminal(self, name: str | None) -> int:
        with Live(console=self.console, refresh_per_second=4) as live:
            patience = Patience()
            while True:
                jobs = patience.ask(lambda: self._jobs(name))
                if jobs is not None:
                    live.update(self._view(jobs, name))
                    if name is not None and has_ended(jobs[0]):
                        return ending(jobs[0])
                self.wait()

    def _view(self, jobs: list[FineTuneJob], name: str | None) -> Group:
        now = self.now()
        if not jobs:
            return Group(plain(f"no FineTuneJobs in {self.namespace or 'any namespace'} yet", "dim"))
        found = listing.table(jobs, now, all_namespaces=self.namespace is None and name is None)
        if name is None:
            return Group(found)
        status = jobs[0].status
        failed = report.failure(status)
        parts = [report.conditions(status.conditions, now)] if status.conditions else []
        return Group(found, Text(), *parts, *([failed] if failed is not None else []))

    def _in_lines(self, name: str | None) -> int:
        patience, shown = Patience(), dict[str, str]()
        while True:
            jobs = patience.ask(lambda: self._jobs(name))
            for job in jobs or []:
                key, news = f"{job.metadata.namespace}/{job.metadata.name}", listing.news(job)
                if shown.get(key) != news:
                    self.console.print(listing.line(job), markup=False)
                    shown[key] = news
            if jobs and name is not None and has_ended(jobs[0]):
                failed = report.failure(jobs[0].status)
                if failed is not None:
                    self.console.print(failed)
                return ending(jobs[0])
            self.wait()

    def logs(self, name: str, stage: str | None, follow: bool) -> int:
        """Print the log of a job's newest pod, or of one stage's; with `follow`, wait for it and go on to the next."""
        told, seen = False, set[str]()
        while True:
            job = self.job(name)
            pod = newest_pod(self.cluster.pods(self.scope, _selector(job, stage)))
            if pod is not None and has_started(pod) and pod["metadata"]["name"] not in seen:
                seen.add(pod["metadata"]["name"])
                for line in self.cluster.log(self.scope, pod["metadata"]["name"], follow):
                    self.console.print(printable_lines(line), markup=False, highlight=False)
            elif not follow or has_ended(job):
                return self._no_pod(job, stage, bool(seen))
            elif not told and not seen:
                told = True
                err.print(plain(f"waiting for a pod of {name} to start …", "dim"))
            if not follow and seen:
                return 0
            self.wait()

    def _no_pod(self, job: FineTuneJob, stage: str | None, printed: bool) -> int:
        if printed:
            return 0
        which = f"stage {stage} of " if stage else ""
        phase = job.status.phase or "not seen by an operator"
        err.print(plain(f"no pod of {which}{job.metadata.name} has started ({phase})"))
        return 1


@dataclass
class Patience:
    """Bears failures of a cluster that was there before."""

    failures: int = 0

    def ask(self, question: Callable[[], list[FineTuneJob]]) -> list[FineTuneJob] | None:
        """The answer; None when it could not be had this time. A job that is gone, or too many failures, are raised."""
        try:
            answer = question()
        except NotFoundError:
            raise
        except ClusterError:
            self.failures += 1
            if self.failures >= TIRED:
                raise
            return None
        self.failures = 0
        return answer


def has_ended(job: FineTuneJob) -> bool:
    return job.status.phase in (Phase.SUCCEEDED, Phase.FAILED)


def ending(job: FineTuneJob) -> int:
    """The exit code of a job that has ended."""
    return 0 if job.status.phase == Phase.SUCCEEDED else 1


def newest_pod(pods: list[Object]) -> Object | None:
    return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)


def has_started(pod: Object) -> bool:
    """Whether there is a log: its trainer runs or has run."""
    states = [status.get("state", {}) for status in pod.get("status", {}).get("containerStatuses", [])]
    return any("running" in state or "terminated" in state for state in states)


def _selector(job: FineTuneJob, stage: str | None) -> str:
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
