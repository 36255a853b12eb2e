"""Reads what a decision about one job depends on, live and by name. What was deleted since the last
look is taken from `departed`; nothing else is remembered between two calls.

It decides which reads are needed. What they mean is `observed_state`'s, what follows from them `plan`'s.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from finetune_api import labels
from finetune_api.schema import unknown_fields
from finetune_api.spec.job_spec import EDITABLE, STEERING, FineTuneJobSpec, Metadata, read_spec
from finetune_api.stages import STAGES
from finetune_api.status import FineTuneJobStatus
from finetune_operator import observed_state
from finetune_operator.cluster import Cluster, Kind
from finetune_operator.departed import Departed
from finetune_operator.observed_state import Claim, NamedJob, Observed, Pod
from finetune_operator.pods import RUN_PART, WORKSPACE_PART
from finetune_operator.situation import is_under_way
from finetune_operator.status import brought_back, is_edited_after_its_end, is_final, present_stage

Object = dict[str, Any]

FINETUNE_JOBS = Kind(labels.API_VERSION, labels.PLURAL)
JOBS = Kind("batch/v1", "jobs")
PODS = Kind("v1", "pods")
EVENTS = Kind("v1", "events")
CONFIG_MAPS = Kind("v1", "configmaps")
CLAIMS = Kind("v1", "persistentvolumeclaims")
NAMED_JOBS_READ = 64
"""Jobs that are looked at for one that waits; a longer chain is followed by the jobs in it."""


async def observe(cluster: Cluster, body: Object, departed: Departed, thorough: bool = False) -> Observed:
    """What is known of the job `body`.

    A job without status is new and has no children, a finished one needs none; of the others the present stage's
    Kubernetes Job is read, and the one that it replaced. `thorough` assumes nothing and reads all stages: the caller
    was told that a child exists already.
    """
    bare = _bare(body)
    if is_final(bare.status):
        return await _edited(cluster, bare) if is_edited_after_its_end(bare.metadata, bare.status) else bare
    if bare.status.phase is None and bare.spec is not None and not thorough:
        return replace(bare, named_jobs=await _named_jobs(cluster, bare))
    metadata = bare.metadata
    stage, number = present_stage(bare.status)
    numbers = {**(dict.fromkeys(STAGES, 1) if thorough else {}), stage: number}
    names = [labels.stage_job_name(metadata.name, metadata.uid, one, last) for one, last in numbers.items()]
    if number > 1:
        names.append(labels.stage_job_name(metadata.name, metadata.uid, stage, number - 1))
    kept = [labels.child_name(metadata.name, metadata.uid, part) for part in (RUN_PART, WORKSPACE_PART)]
    kinds = [CONFIG_MAPS, CLAIMS, *([JOBS] * len(names))]

    async def read_pods() -> tuple[Pod, ...]:
        bodies = await cluster.find(PODS, metadata.namespace, f"{labels.JOB_UID_LABEL}={metadata.uid}")
        return await _pods(cluster, bodies, departed.pods(metadata.uid))

    reading = asyncio.ensure_future(read_pods())
    children = await asyncio.gather(
        *(cluster.get(kind, metadata.namespace, name) for kind, name in zip(kinds, [*kept, *names], strict=True))
    )
    seen = _Children.sorted_out(metadata.uid, children, has_begun=bare.status.started_at is not None)
    jobs = {one.name: one for one in [await _job(cluster, child) for child in seen.jobs]}
    for name in names[: len(numbers)]:
        if name not in jobs and (last := departed.job(metadata.uid, name)) is not None:
            jobs[name] = last
    pods = await reading
    if any(job.is_complete and not _shows_the_end(job, pods) for job in jobs.values()):
        pods = await read_pods()  # they were read beside the Job: what has completed it may have ended in between
    spec, problem = (bare.spec, "") if bare.spec else _spec_of_run(body["spec"], bare, seen.run)
    found = replace(
        bare,
        spec=spec,
        problem=problem or bare.problem,
        run=observed_state.run_file(seen.run) if seen.run else None,
        workspace=seen.workspace,
        jobs={jobs[name].stage: jobs[name] for name in names[: len(numbers)] if name in jobs},
        replaced=jobs.get(names[-1]) if number > 1 else None,
        pods=pods,
        conflicts=seen.conflicts,
        named_jobs=await _named_jobs(cluster, bare) if seen.run is None else {},
    )
    # A pin of which nothing was made is made anew, and so is what is told of the spec.
    return found if found.run or is_under_way(found) else replace(found, unknown=_unknown(body))


async def _edited(cluster: Cluster, bare: Observed) -> Observed:
    """A finished job that was edited: what becomes of its workspace may have been."""
    name = labels.child_name(bare.metadata.name, bare.metadata.uid, WORKSPACE_PART)
    claim = await cluster.get(CLAIMS, bare.metadata.namespace, name)
    return replace(bare, workspace=_Children.sorted_out(bare.metadata.uid, [claim], has_begun=True).workspace)


def _shows_the_end(job: observed_state.StageJob, pods: Iterable[Pod]) -> bool:
    return any(pod.owner == job.uid and pod.is_over for pod in pods)


async def _pods(cluster: Cluster, bodies: Sequence[Object], departed: Sequence[Pod]) -> tuple[Pod, ...]:
    """The pods that are there, then those that were: oldest first."""
    # One that wears our label and names no stage is not ours.
    there = [await _pod(cluster, body) for body in bodies if labels.STAGE_LABEL in body["metadata"]["labels"]]
    known = {pod.uid for pod in there}
    return in_order([*there, *(pod for pod in departed if pod.uid not in known)])


def in_order(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """Oldest first. They are dated in whole seconds: of those that were made in one, what has ended first was first."""

    def age(pod: Pod) -> tuple[object, ...]:
        return pod.created_at, not pod.gone_at, not pod.is_over, not pod.is_deleting, pod.ended_at

    return tuple(sorted(pods, key=age))


async def _named_jobs(cluster: Cluster, bare: Observed) -> dict[str, NamedJob]:
    """The jobs that a job waits for, those that they wait for, and so on: a circle is not seen from one job alone."""
    found: dict[str, NamedJob] = {}
    asked: set[str] = set()
    left = list(bare.spec.named_jobs) if bare.spec else []
    while left and len(asked) < NAMED_JOBS_READ:
        name = left.pop(0)
        asked.add(name)
        body = await cluster.get(FINETUNE_JOBS, bare.metadata.namespace, name)
        if body is not None and "deletionTimestamp" not in body["metadata"]:
            other = _bare(body)
            found[name] = observed_state.named_job(name, other.spec, other.status)
            left += [one for one in found[name].waits_for if one not in asked]
    return found


def _bare(body: Object) -> Observed:
    """What the object itself says, whichever release wrote it; a failed job whose limits were raised, brought back."""
    metadata = Metadata.model_validate(body["metadata"])
    status = FineTuneJobStatus.read(body.get("status", {}))
    spec, problem = read_spec(body["spec"])
    back = brought_back(spec, status)
    if back is not None:
        return Observed(metadata, spec, back, stored=status)
    return Observed(metadata, spec, status, problem=problem, unknown=_unknown(body) if status.run is None else ())


def _unknown(body: Object) -> tuple[str, ...]:
    return tuple(unknown_fields(FineTuneJobSpec, body["spec"], "spec"))


def _spec_of_run(live: Object, bare: Observed, run: Object | None) -> tuple[FineTuneJobSpec | None, str]:
    """The spec of the frozen run, if it is the one that was pinned, with those editable fields that can be read."""
    pin = bare.status.run
    if run is None or pin is None or observed_state.run_file(run).digest != pin.digest:
        return None, bare.problem
    try:
        frozen = json.loads(run["data"][labels.RUN_FILE])["spec"]
    except (ValueError, KeyError, TypeError):
        return None, bare.problem
    spec, problem = read_spec(frozen)
    for path in (*STEERING, *EDITABLE) if spec else ():
        edited = _with_field(frozen, live, path.split("."))
        with_field, _ = read_spec(edited)
        if with_field is not None:
            frozen, spec = edited, with_field
    return spec, problem


def _with_field(base: Object, live: Object, path: Sequence[str]) -> Object:
    """`base` with the field at the path as it is in `live`: absent where it is absent there."""
    first, *rest = path
    if rest:
        part = live.get(first)
        return {**base, first: _with_field(base.get(first, {}), part if isinstance(part, dict) else {}, rest)}
    return {name: value for name, value in base.items() if name != first} | (
        {first: live[first]} if first in live else {}
    )


class _Children:
    """The children, those that are somebody else's told apart."""

    def __init__(self) -> None:
        self.run: Object | None = None
        self.workspace: Claim | None = None
        self.jobs: list[Object] = []
        self.conflicts: tuple[str, ...] = ()

    @classmethod
    def sorted_out(cls, uid: str, children: Sequence[Object | None], has_begun: bool) -> "_Children":
        seen = cls()
        for child in children:
            if child is None:
                continue
            owner = observed_state.controller_of(child)
            is_let_go = has_begun and not owner and child["metadata"].get("labels", {}).get(labels.JOB_UID_LABEL) == uid
            if owner != uid and not (is_let_go and child["kind"] == "PersistentVolumeClaim"):
                seen.conflicts += (f"{child.get('kind', 'object')} {child['metadata']['name']}",)
            elif child["kind"] == "ConfigMap":
                seen.run = child
            elif child["kind"] == "PersistentVolumeClaim":
                if "deletionTimestamp" not in child["metadata"]:
                    seen.workspace = Claim(child["metadata"]["name"], child["metadata"]["uid"], is_owned=owner == uid)
            else:
                seen.jobs.append(child)
        return seen


async def _job(cluster: Cluster, body: Object) -> observed_state.StageJob:
    """A Kubernetes Job; one that lacks a pod is asked for the Events that tell why."""
    return observed_state.stage_job(
        body, await _events(cluster, body, "reason=FailedCreate") if observed_state.lacks_a_pod(body) else ()
    )


async def _pod(cluster: Cluster, body: Object) -> Pod:
    """A pod; one that does not start is asked for its Events: of much that keeps it nobody tells elsewhere."""
    if not observed_state.is_mute(body, datetime.now(UTC)):
        return observed_state.pod(body)
    return observed_state.pod(body, await _events(cluster, body))


async def _events(cluster: Cluster, body: Object, *more: str) -> list[Object]:
    """The Events about one object, of those that `more` selects."""
    metadata = body["metadata"]
    fields = ",".join([f"involvedObject.uid={metadata['uid']}", *more])
    return await cluster.find(EVENTS, metadata["namespace"], fields=fields)
