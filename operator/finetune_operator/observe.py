"""Reads what a decision about one job depends on, live and by name: nothing here is remembered between two calls.

It decides which reads are needed. What they mean is `facts`', what follows from them `plan`'s.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from finetune_api import labels
from finetune_api.run import Run
from finetune_api.spec import FineTuneJobSpec, Metadata
from finetune_api.status import FineTuneJobStatus
from finetune_operator import facts
from finetune_operator.cluster import Cluster, Kind
from finetune_operator.facts import STAGES, NamedJob, Observed
from finetune_operator.pods import RUN_PART, WORKSPACE_PART
from finetune_operator.status import is_finished, next_stage

Object = dict[str, Any]

FINETUNE_JOBS = Kind(labels.API_VERSION, labels.PLURAL)
JOBS = Kind("batch/v1", "jobs")
PODS = Kind("v1", "pods")
EVENTS = Kind("v1", "events")
CONFIG_MAPS = Kind("v1", "configmaps")
CLAIMS = Kind("v1", "persistentvolumeclaims")
NAMED_JOBS_READ = 64
"""Jobs that are looked at for one that waits; a longer chain is followed by the jobs in it."""


async def observe(cluster: Cluster, body: Object, thorough: bool = False) -> Observed:
    """What is known of the job `body`.

    A job without status is new and has no children, a finished one needs none; of the others only the current stage's
    Kubernetes Job is read. `thorough` assumes nothing and reads all: the caller was told that a child exists already.
    """
    bare = _bare(body)
    if is_finished(bare.status) or bare.spec is None:
        return bare
    if bare.status.phase is None and not thorough:
        return replace(bare, named_jobs=await _named_jobs(cluster, bare))
    stages = STAGES if thorough else (next_stage(bare.status),)
    metadata = bare.metadata
    names = [labels.child_name(metadata.name, metadata.uid, part) for part in (RUN_PART, WORKSPACE_PART, *stages)]
    kinds = [CONFIG_MAPS, CLAIMS, *([JOBS] * len(stages))]
    pods = asyncio.ensure_future(cluster.find(PODS, metadata.namespace, f"{labels.JOB_UID_LABEL}={metadata.uid}"))
    children = await asyncio.gather(
        *(cluster.get(kind, metadata.namespace, name) for kind, name in zip(kinds, names, strict=True))
    )
    seen = _Children.sorted_out(metadata.uid, children)
    named = await _named_jobs(cluster, bare) if seen.run is None else {}
    return Observed(
        metadata=metadata,
        spec=bare.spec,
        status=bare.status,
        run=seen.run,
        has_workspace=seen.has_workspace,
        jobs={job.stage: job for job in [await _job(cluster, one) for one in seen.jobs]},
        pods=tuple([await _pod(cluster, one) for one in sorted(await pods, key=_age)]),
        conflicts=seen.conflicts,
        named_jobs=named,
    )


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
            found[name] = facts.named_job(name, other.spec, other.status)
            left += [one for one in found[name].waits_for if one not in asked]
    return found


def _bare(body: Object) -> Observed:
    """What the object itself says."""
    metadata = Metadata.model_validate(body["metadata"])
    try:
        status = FineTuneJobStatus.model_validate(body.get("status", {}))
    except ValidationError:
        # Written by a newer operator: it is worked out anew.
        status = FineTuneJobStatus(phase=body["status"].get("phase"))
    try:
        return Observed(metadata, FineTuneJobSpec.model_validate(body["spec"]), status)
    except ValidationError as problem:
        return Observed(metadata, None, status, problem=_first_problem(problem))


def _first_problem(problem: ValidationError) -> str:
    first = problem.errors()[0]
    return f"spec.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


class _Children:
    """The children, those that are somebody else's told apart."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.has_workspace = False
        self.jobs: list[Object] = []
        self.conflicts: tuple[str, ...] = ()

    @classmethod
    def sorted_out(cls, uid: str, children: Sequence[Object | None]) -> "_Children":
        seen = cls()
        for child in children:
            if child is None:
                continue
            if facts.controller_of(child) != uid:
                seen.conflicts += (f"{child.get('kind', 'object')} {child['metadata']['name']}",)
            else:
                seen._take(child)
        return seen

    def _take(self, child: Object) -> None:
        if child["kind"] == "ConfigMap":
            self.run = Run.model_validate_json(child["data"][labels.RUN_FILE])
        elif child["kind"] == "PersistentVolumeClaim":
            self.has_workspace = True
        else:
            self.jobs.append(child)


async def _job(cluster: Cluster, body: Object) -> facts.StageJob:
    """A Kubernetes Job; one without any pod is asked for the Events that tell why."""
    status = body.get("status", {})
    is_mute = not (
        body["spec"].get("suspend") or status.get("active") or status.get("conditions") or status.get("failed")
    )
    complaints = await _complaints(cluster, body, "FailedCreate") if is_mute else ()
    return facts.stage_job(body, complaints)


async def _pod(cluster: Cluster, body: Object) -> facts.Pod:
    """A pod; one whose volumes are being mounted is asked for its Events: the kubelet says nowhere else what fails."""
    return facts.pod(body, await _complaints(cluster, body, "FailedMount") if facts.is_mounting(body) else ())


async def _complaints(cluster: Cluster, body: Object, reason: str) -> tuple[str, ...]:
    metadata = body["metadata"]
    events = await cluster.find(
        EVENTS, metadata["namespace"], fields=f"involvedObject.uid={metadata['uid']},reason={reason}"
    )
    return tuple(event.get("message", "") for event in sorted(events, key=_time))


def _time(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"])


def _age(body: Object) -> str:
    return str(body["metadata"].get("creationTimestamp", ""))
