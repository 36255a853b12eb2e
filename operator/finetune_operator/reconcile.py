"""One pass over one job: read, decide, write. The status is written once, and only if it changed: last, unless what is
created or deleted rests on it.

It decides nothing. Every write may be repeated: children are created or are there, a deletion names a uid, and the
status the version that it is written over.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import aiohttp

from finetune_api import labels
from finetune_api import status as api
from finetune_api.reasons import ConditionType, Phase, Reason
from finetune_operator import manifests, metrics
from finetune_operator.cluster import ApiError, Cluster, Conflict, Kind, NotFound
from finetune_operator.departed import Departed
from finetune_operator.diagnosis import Obstacle, has_field, refused
from finetune_operator.metrics import Key
from finetune_operator.observe import CLAIMS, CONFIG_MAPS, EVENTS, FINETUNE_JOBS, JOBS, observe
from finetune_operator.observed_state import Observed, seconds_between
from finetune_operator.places import Places
from finetune_operator.plan import Plan, plan
from finetune_operator.progress import ProgressReader, Target
from finetune_operator.settings import Settings
from finetune_operator.stages import TRAITS
from finetune_operator.status import condition, is_final

log = logging.getLogger(__name__)

Object = dict[str, Any]

MANAGER = "finetune-operator"
PROGRESS_MANAGER = "finetune-progress"
KINDS: dict[str, Kind] = {"ConfigMap": CONFIG_MAPS, "PersistentVolumeClaim": CLAIMS, "Job": JOBS}
WRITES = 5
"""Tries of one status: its other half, or an edit, comes between one and the next."""
Done = tuple[Object, Observed, Plan]
"""The job after its children were changed, what was decided upon, and what of it is left to say."""
EXISTS = Obstacle(Reason.NAME_CONFLICT, "")


NOT_DECLARED = re.compile(r"\.status\.(\S+): field not declared in schema")
"""The API server names one field at a time."""


class StatusWriter:
    """Writes the two halves of the status, each under its own field manager, so that neither undoes the other."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def status(self, key: Key, body: Object, status: api.FineTuneJobStatus) -> tuple[Object, tuple[str, ...]]:
        """Write all of the status but progress over that of `body`, if it differs; fields that only a newer operator
        knows stay. Returns the job, and the fields that the CustomResourceDefinition does not have."""
        stored = {name: value for name, value in body.get("status", {}).items() if name != "progress"}
        wire = status.over(stored)
        if wire == stored:
            return body, ()
        absent: list[str] = []
        while True:
            try:
                return await self._write(key, body, wire, MANAGER), tuple(absent)
            except ApiError as problem:
                found = NOT_DECLARED.search(problem.message)
                if found is None or found[1] in absent:
                    raise
                absent.append(found[1])
                wire = _without(wire, found[1].split("."))
                log.warning("the CustomResourceDefinition is older than this operator: no status.%s", found[1])

    async def first_status(self, told: Object, status: api.FineTuneJobStatus) -> Object:
        """Write the status of a new job; returns the job as it is. Raises ApiError unless it is still what was told."""
        return await self._write_over(told, status.over({}), MANAGER)

    async def progress(self, key: Key, uid: str, progress: api.Progress) -> None:
        """Show `progress`; a job that is gone or another by now is left alone."""
        try:
            body = await self._read(key, uid)
            await self._write(key, body, {"progress": progress.to_wire()}, PROGRESS_MANAGER)
        except (NotFound, Conflict):
            log.debug("the job is gone: its progress is not written")

    async def _write(self, key: Key, body: Object, status: Object, manager: str) -> Object:
        """Write over the status of the job that `body` shows, whoever else has written meanwhile."""
        for _ in range(WRITES - 1):
            try:
                return await self._write_over(body, status, manager)
            except Conflict:
                body = await self._read(key, body["metadata"]["uid"])
        return await self._write_over(body, status, manager)

    async def _write_over(self, body: Object, status: Object, manager: str) -> Object:
        """Raises Conflict where `body` is not what the job is now."""
        metadata = {name: body["metadata"][name] for name in ("namespace", "name", "resourceVersion")}
        wire = {"apiVersion": labels.API_VERSION, "kind": labels.KIND, "metadata": metadata, "status": status}
        return await self._cluster.apply_status(FINETUNE_JOBS, wire, manager)

    async def _read(self, key: Key, uid: str) -> Object:
        """That very job; raises NotFound when it is gone, and Conflict when another one has its name."""
        body = await self._cluster.request("GET", FINETUNE_JOBS.path(*key))
        if body["metadata"]["uid"] != uid:
            raise Conflict(409, "Conflict", "the job was deleted, and another one has its name")
        return body


class Reconciler:
    """Brings one job a step further each time it is called."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        reader: ProgressReader,
        writer: StatusWriter,
        departed: Departed,
        note: Callable[[Key, Object | None], None],
        places: Places,
    ) -> None:
        """`note` is told the spec of each job that may still change, as it is stored, and None of one that has ended or
        is gone; each pass has one of the `places`."""
        self._places = places
        self._note = note
        self._departed = departed
        self._cluster = cluster
        self._settings = settings
        self._reader = reader
        self._writer = writer

    async def reconcile(self, key: Key, told: Object | None = None) -> float | None:
        """Seconds after which to look again; None: when something changes. `told` is a job without status as the watch
        tells it."""
        done = await self._begin(key, told) if told is not None else None
        if done is None:
            body = await self._cluster.get(FINETUNE_JOBS, *key)
            if body is None:
                self._reader.track(key, None)
                metrics.forget(key)
                self._note(key, None)
                return None
            done = await self._act(key, body)
        return await self._finish(key, *done)

    async def _observe(self, key: Key, body: Object, thorough: bool = False) -> Observed:
        observed = await observe(self._cluster, body, self._departed, thorough)
        return replace(observed, health=self._reader.health(key), reports=self._reader.reports(key))

    def _decide(self, observed: Observed) -> Plan:
        return plan(observed, self._settings, datetime.now(UTC))

    async def _begin(self, key: Key, told: Object) -> Done | None:
        """As `_act`, without reading the job; None where it has to be read.

        The watch may lag, or leave out a field that the definition got after the stream was opened. Before anything is
        made the status is written, and its answer shows the job as it is.
        """
        observed = await self._observe(key, told)
        decided = self._decide(observed)
        if not (decided.create and decided.status_first) or decided.status is None:
            return None
        try:
            body = await self._writer.first_status(told, decided.status)
        except ApiError as problem:
            log.debug("read, as it may not be what was told: %s", problem)
            return None
        return await self._do(key, body, observed, decided) if body["spec"] == told["spec"] else None

    async def _act(self, key: Key, body: Object) -> Done:
        """Decide and change the children."""
        observed = await self._observe(key, body)
        return await self._do(key, body, observed, self._decide(observed))

    async def _do(self, key: Key, body: Object, observed: Observed, decided: Plan) -> Done:
        """Change the children, as was decided."""
        body, refusal = await self._carry_out(key, body, decided)
        if refusal is EXISTS:
            # A child exists that was thought absent: look at everything, and decide again.
            observed = await self._observe(key, body, thorough=True)
            decided = self._decide(observed)
            body, refusal = await self._carry_out(key, body, decided)
        if refusal is not None and refusal is not EXISTS:
            observed = replace(observed, refusal=(refusal.reason, refusal.message))
            decided = self._decide(observed)
        observed, decided = await self._end_jobs(observed, decided)
        return body, *await self._give_up(observed, decided)

    async def _end_jobs(self, observed: Observed, decided: Plan) -> tuple[Observed, Plan]:
        """Delete Kubernetes Jobs; what is decided where one may not be deleted."""
        for job in decided.delete:
            try:
                await self._cluster.delete(JOBS, job.namespace, job.name, job.uid)
            except ApiError as problem:
                refusal = refused(problem.status, f"deleting the Kubernetes Job {job.name}: {problem.message}")
                observed = replace(observed, kept_job=(refusal.reason, refusal.message))
                return observed, self._decide(observed)
        return observed, decided

    async def _give_up(self, observed: Observed, decided: Plan) -> tuple[Observed, Plan]:
        """Delete the workspace, or take our owner reference off it, so that it outlives the job; what is decided where
        that is refused."""
        claim, namespace = observed.workspace, observed.metadata.namespace
        if claim is None or decided.workspace is None:
            return observed, decided
        try:
            if decided.workspace == "delete":
                await self._cluster.delete(CLAIMS, namespace, claim.name, claim.uid)
            else:
                await self._cluster.merge(CLAIMS, namespace, claim.name, claim.uid, {"ownerReferences": None})
        except (NotFound, Conflict):  # another claim of that name, or the reference is gone
            log.debug("the workspace %s is gone", claim.name)
        except ApiError as problem:
            way = "deleted" if decided.workspace == "delete" else "made to outlive the job"
            why = f"The workspace {claim.name} could not be {way}: {problem.message}"
            observed = replace(observed, kept_workspace=why)
            return observed, self._decide(observed)
        return observed, decided

    async def _carry_out(self, key: Key, body: Object, decided: Plan) -> tuple[Object, Obstacle | None]:
        """Write what must be written first, and create; returns the job as it is then, and why a child could not be
        created."""
        if decided.status_first and decided.status is not None:
            body, absent = await self._writer.status(key, body, decided.status)
            if "run" in absent and any(one["kind"] == "ConfigMap" for one in decided.create):
                return body, Obstacle(Reason.DEFINITION_OUTDATED, "the definition of FineTuneJob has no status.run")
        for manifest in decided.create:
            refusal = await create_child(self._cluster, manifest, self._places)
            if refusal is not None:
                return body, refusal
        return body, None

    async def _finish(self, key: Key, body: Object, observed: Observed, decided: Plan) -> float | None:
        """Status, progress and Events; then follow the running pod."""
        metadata, old = observed.metadata, observed.status
        if decided.expire:
            await self._cluster.delete(FINETUNE_JOBS, *key, metadata.uid)
            return None
        status = decided.status
        if status is not None:
            await self._writer.status(key, body, status)
            if status != old.model_copy(update={"progress": None}):
                _log_change(old, status)
        if decided.progress is not None and decided.progress != old.progress:
            await self._writer.progress(key, metadata.uid, decided.progress)
        for event in decided.events:
            await self._tell(manifests.event(metadata, event.type, event.reason, event.message, datetime.now(UTC)))
        _measure(key, observed, status or old)
        is_over = is_final(status or old)
        if is_over:
            self._departed.forget(metadata.uid)
        self._reader.track(key, None if is_over else _target(observed))
        self._note(key, None if is_over else body["spec"])
        return decided.requeue_after

    async def _tell(self, event: Object) -> None:
        """Events are a courtesy: that one cannot be written stops nothing."""
        try:
            await self._cluster.create(EVENTS, event, MANAGER)
        except Conflict:
            log.debug("the Event is there already")
        except ApiError as problem:
            log.warning("an Event could not be written: %s", problem)


async def create_child(cluster: Cluster, manifest: Object, places: Places) -> Obstacle | None:
    """Create it; why that could not be, EXISTS where there is an object of that name."""
    kind = manifest["kind"]
    try:
        # Create, not apply: an apply would write into somebody else's object of that name.
        await places.wait_for(cluster.create(KINDS[kind], manifest, MANAGER, patient=False))
    except ApiError as problem:
        if problem.status == 409 and problem.reason == "AlreadyExists":
            return EXISTS
        ours = tuple(field for field in problem.fields if has_field(manifest, field))
        return refused(problem.status, f"{kind}: {problem.message}", ours)
    except (aiohttp.ClientError, TimeoutError) as problem:
        return refused(0, f"{kind}: no answer to its creation: {problem or repr(problem)}")
    return None


def _without(value: Object, path: list[str]) -> Object:
    """`value` without the field at the path; of a list's items (`conditions[type="Ready"]`), of all of them."""
    name, _, item = path[0].partition("[")
    if name not in value or (len(path) == 1 and not item):
        return {key: part for key, part in value.items() if key != name}
    part = value[name]
    below = [_without(one, path[1:]) for one in part] if item else _without(part, path[1:])
    return {**value, name: below}


def _target(observed: Observed) -> Target | None:
    """The running pod whose progress is the job's. Only pods of our own Kubernetes Jobs are ever called."""
    ours = {job.uid for job in observed.jobs.values()}
    running = [pod for pod in observed.pods if pod.is_running and pod.ip and pod.owner in ours]
    if not running:
        return None
    pod = running[-1]
    return Target(observed.metadata.uid, pod.uid, pod.ip, pod.stage, pod.port)


def _measure(key: Key, observed: Observed, status: api.FineTuneJobStatus) -> None:
    metrics.note_status(key, observed.status, status)
    known = {one.type for one in observed.status.conditions if one.status == "True"}
    fresh = {one.type for one in status.conditions if one.status == "True"} - known
    for pod in observed.pods:
        end = pod.termination
        if pod.stage in TRAITS and TRAITS[pod.stage].milestone in fresh and end is not None and end.exit_code == 0:
            metrics.note_stage(pod.stage, seconds_between(end.started_at, end.finished_at))


def _log_change(old: api.FineTuneJobStatus, new: api.FineTuneJobStatus) -> None:
    now = condition(new, ConditionType.PROGRESSING)
    level = logging.WARNING if new.phase == Phase.FAILED else logging.INFO
    log.log(level, "%s → %s: %s %s", old.phase or "new", new.phase, now.reason, now.message)
