"""One pass over one job: read, decide, write. The status is written last, once, and only if it changed.

It decides nothing. Every write may be repeated: children are created or are there, deletions and the status name a uid.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from finetune_api import labels
from finetune_api import status as api
from finetune_api.reasons import ConditionType, Phase, Reason
from finetune_operator import metrics, objects
from finetune_operator.cluster import ApiError, Cluster, Conflict, Kind, NotFound
from finetune_operator.facts import Observed, StageName, seconds_between
from finetune_operator.metrics import Key
from finetune_operator.observe import CLAIMS, CONFIG_MAPS, EVENTS, FINETUNE_JOBS, JOBS, observe
from finetune_operator.plan import Plan, plan
from finetune_operator.progress import ProgressReader, Target
from finetune_operator.settings import Settings
from finetune_operator.status import condition

log = logging.getLogger(__name__)

Object = dict[str, Any]

MANAGER = "finetune-operator"
PROGRESS_MANAGER = "finetune-progress"
KINDS: dict[str, Kind] = {"ConfigMap": CONFIG_MAPS, "PersistentVolumeClaim": CLAIMS, "Job": JOBS}
MILESTONES: dict[StageName, ConditionType] = {
    "prepare": ConditionType.PREPARED,
    "train": ConditionType.EVALUATED,
    "publish": ConditionType.PUBLISHED,
}
REFUSALS = {400: Reason.BAD_SPEC, 422: Reason.BAD_SPEC, 403: Reason.UNSCHEDULABLE}
"""What it means that a child cannot be created: its spec is no good, or a quota or policy is in the way."""


class StatusWriter:
    """Writes the two halves of the status, each under its own field manager, so that neither undoes the other."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def status(self, key: Key, uid: str, status: api.FineTuneJobStatus) -> None:
        """All of the status but progress."""
        await self._write(key, uid, status.to_wire(), MANAGER)

    async def progress(self, key: Key, uid: str, progress: api.Progress) -> None:
        """Show `progress`; a job that is gone or another by now is left alone."""
        try:
            await self._write(key, uid, {"progress": progress.to_wire()}, PROGRESS_MANAGER)
        except (NotFound, Conflict):
            log.debug("the job is gone: its progress is not written")

    async def _write(self, key: Key, uid: str, status: Object, manager: str) -> None:
        metadata = {"namespace": key[0], "name": key[1], "uid": uid}
        body = {"apiVersion": labels.API_VERSION, "kind": labels.KIND, "metadata": metadata, "status": status}
        await self._cluster.apply_status(FINETUNE_JOBS, body, manager)


class Reconciler:
    """Brings one job a step further each time it is called."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        reader: ProgressReader,
        writer: StatusWriter,
        gone: Callable[[Key], None],
    ) -> None:
        """`gone` is told of each job that no longer exists."""
        self._gone = gone
        self._cluster = cluster
        self._settings = settings
        self._reader = reader
        self._writer = writer

    async def reconcile(self, key: Key) -> float | None:
        """Seconds after which to look again; None: when something changes."""
        body = await self._cluster.get(FINETUNE_JOBS, *key)
        if body is None:
            self._reader.track(key, None)
            metrics.forget(key)
            self._gone(key)
            return None
        observed, decided = await self._act(key, body)
        return await self._finish(key, observed, decided)

    def _decide(self, observed: Observed) -> Plan:
        return plan(observed, self._settings, datetime.now(UTC))

    def _with_reports(self, key: Key, observed: Observed) -> Observed:
        return replace(observed, health=self._reader.health(key), reports=self._reader.reports(key))

    async def _act(self, key: Key, body: Object) -> tuple[Observed, Plan]:
        """Decide and change the children; returns what was decided upon, and what of it is left to say."""
        observed = self._with_reports(key, await observe(self._cluster, body))
        decided = self._decide(observed)
        try:
            await self._apply_children(decided)
        except Conflict:
            # A child exists that was thought absent: look at everything, and decide again.
            observed = self._with_reports(key, await observe(self._cluster, body, thorough=True))
            decided = self._decide(observed)
            await self._apply_children(decided)
        except ApiError as problem:
            if problem.status not in REFUSALS:
                raise
            observed = replace(observed, refusal=(REFUSALS[problem.status], problem.message))
            decided = self._decide(observed)
        return observed, decided

    async def _apply_children(self, decided: Plan) -> None:
        """Delete, then create; raises Conflict when an object of a child's name exists."""
        for job in decided.delete:
            await self._cluster.delete(JOBS, job.namespace, job.name, job.uid)
        for manifest in decided.create:
            # Create, not apply: an apply would write into somebody else's object of that name.
            await self._cluster.create(KINDS[manifest["kind"]], manifest, MANAGER)

    async def _finish(self, key: Key, observed: Observed, decided: Plan) -> float | None:
        """Status, progress and Events; then follow the running pod."""
        metadata, old = observed.metadata, observed.status
        if decided.expire:
            await self._cluster.delete(FINETUNE_JOBS, *key, metadata.uid)
            return None
        status = decided.status
        if status is not None and status != old.model_copy(update={"progress": None}):
            await self._writer.status(key, metadata.uid, status)
            _log_change(old, status)
        if decided.progress is not None and decided.progress != old.progress:
            await self._writer.progress(key, metadata.uid, decided.progress)
        for event in decided.events:
            await self._tell(objects.event(metadata, event.type, event.reason, event.message, datetime.now(UTC)))
        _measure(key, observed, status or old)
        self._reader.track(key, None if _is_over(status or old) else _target(observed))
        return decided.requeue_after

    async def _tell(self, event: Object) -> None:
        """Events are a courtesy: that one cannot be written stops nothing."""
        try:
            await self._cluster.create(EVENTS, event, MANAGER)
        except Conflict:
            log.debug("the Event is there already")
        except ApiError as problem:
            log.warning("an Event could not be written: %s", problem)


def _target(observed: Observed) -> Target | None:
    """The running pod whose progress is the job's. Only pods of our own Kubernetes Jobs are ever called."""
    ours = {job.uid for job in observed.jobs.values()}
    running = [pod for pod in observed.pods if pod.is_running and pod.ip and pod.owner in ours]
    if not running:
        return None
    pod = running[-1]
    return Target(observed.metadata.uid, pod.uid, pod.ip, pod.stage, pod.port)


def _is_over(status: api.FineTuneJobStatus) -> bool:
    return status.phase in (Phase.SUCCEEDED, Phase.FAILED)


def _measure(key: Key, observed: Observed, status: api.FineTuneJobStatus) -> None:
    metrics.note_status(key, observed.status, status)
    known = {one.type for one in observed.status.conditions if one.status == "True"}
    fresh = {one.type for one in status.conditions if one.status == "True"} - known
    for pod in observed.pods:
        end = pod.termination
        if MILESTONES[pod.stage] in fresh and end is not None and end.exit_code == 0:
            metrics.note_stage(pod.stage, seconds_between(end.started_at, end.finished_at))


def _log_change(old: api.FineTuneJobStatus, new: api.FineTuneJobStatus) -> None:
    now = condition(new, ConditionType.PROGRESSING)
    level = logging.WARNING if new.phase == Phase.FAILED else logging.INFO
    log.log(level, "%s → %s: %s %s", old.phase or "new", new.phase, now.reason, now.message)
