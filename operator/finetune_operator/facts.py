"""What was seen of one job, in the operator's own words: raw Kubernetes objects read into small frozen values.

It decides what a raw field means and nothing about what follows from it. It does no I/O.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from finetune_api import labels
from finetune_api.events import ProgressReport
from finetune_api.reasons import ConditionType, Reason
from finetune_api.run import Run
from finetune_api.spec import FineTuneJobSpec, Metadata
from finetune_api.status import Artifact, FineTuneJobStatus

Object = dict[str, Any]
StageName = Literal["prepare", "train", "publish"]
STAGES: tuple[StageName, ...] = ("prepare", "train", "publish")


@dataclass(frozen=True)
class Termination:
    """How a container ended."""

    exit_code: int
    reason: str = ""
    message: str = ""
    """The trainer's report, or nothing."""
    started_at: str | None = None
    finished_at: str | None = None


@dataclass(frozen=True)
class Pod:
    """A pod of one of the stages."""

    name: str
    uid: str
    stage: StageName
    owner: str = ""
    """uid of the Kubernetes Job that made it."""
    created_at: str = ""
    ip: str = ""
    port: int = 0
    """Of its progress page; 0: it has none."""
    phase: str = "Pending"
    is_deleting: bool = False
    disruption: str = ""
    """Message of the DisruptionTarget condition; empty: nobody disrupts it."""
    is_scheduled: bool = False
    refused_since: str = ""
    """Since when the scheduler finds no node; empty: it does not say so."""
    refusal: str = ""
    """The scheduler's words."""
    waiting: str = ""
    """Why the container does not run yet, as the kubelet says it."""
    waiting_message: str = ""
    running_since: str = ""
    termination: Termination | None = None
    end_reason: str = ""
    """The pod's own reason: Evicted, NodeLost, …"""
    end_message: str = ""
    complaints: tuple[str, ...] = ()
    """Messages of the pod's warning Events: the only place where a failed mount is told."""

    @property
    def is_over(self) -> bool:
        """Its containers have ended and will not start again."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def is_running(self) -> bool:
        return bool(self.running_since) and self.termination is None and not self.is_over


@dataclass(frozen=True)
class StageJob:
    """The Kubernetes Job of one stage."""

    namespace: str
    name: str
    uid: str
    stage: StageName
    is_suspended: bool = False
    is_complete: bool = False
    failure: str = ""
    """Reason of the Job's Failed condition; empty: it has not failed."""
    failure_message: str = ""
    is_deleting: bool = False
    complaints: tuple[str, ...] = ()
    """Messages of the Job's warning Events: why it cannot make pods."""

    @property
    def is_finished(self) -> bool:
        return self.is_complete or bool(self.failure)


@dataclass(frozen=True)
class Health:
    """What the progress pages of the running pod say beside numbers: Training as it should, NoReports or Stalled."""

    reason: Reason
    message: str = ""


@dataclass(frozen=True)
class NamedJob:
    """Another FineTuneJob, that this one waits for."""

    name: str
    is_complete: bool = False
    failure: str = ""
    """Message of its Failed condition; empty: it has not failed."""
    artifact: Artifact | None = None
    waits_for: tuple[str, ...] = ()
    """The jobs that it names itself, until its run is frozen."""


@dataclass(frozen=True)
class Observed:
    """All that a decision about one job may depend on, beside the time and the settings."""

    metadata: Metadata
    spec: FineTuneJobSpec | None
    """As it is now; None when it does not parse."""
    status: FineTuneJobStatus = field(default_factory=FineTuneJobStatus)
    """As it was written last."""
    problem: str = ""
    """Why the spec does not parse."""
    run: Run | None = None
    """The frozen run; None before it is frozen."""
    has_workspace: bool = False
    jobs: Mapping[StageName, StageJob] = field(default_factory=dict)
    pods: tuple[Pod, ...] = ()
    """Oldest first."""
    conflicts: tuple[str, ...] = ()
    """Objects in the way: they have the name of a child and another owner."""
    refusal: tuple[Reason, str] | None = None
    """What the API server answered when a child was to be created."""
    named_jobs: Mapping[str, NamedJob] = field(default_factory=dict)
    """The jobs that the spec names, and those that they wait for, by name; one that is missing does not exist. Read
    until the run is frozen."""
    health: Health | None = None
    reports: Mapping[str, ProgressReport] = field(default_factory=dict)
    """The last progress page of each training pod, by its uid."""

    def pods_of(self, stage: StageName) -> tuple[Pod, ...]:
        return tuple(pod for pod in self.pods if pod.stage == stage)

    def tries(self, stage: StageName) -> tuple[Pod, ...]:
        """The pods of the stage's present Kubernetes Job; those of one that was deleted are history."""
        job = self.jobs.get(stage)
        return tuple(pod for pod in self.pods_of(stage) if job is not None and pod.owner == job.uid)


def timestamp(moment: datetime) -> str:
    """As Kubernetes writes it: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    """The inverse of `timestamp`; takes fractions of a second too."""
    return datetime.fromisoformat(text)


def seconds_between(start: str | None, end: str | None) -> float:
    """Seconds from one timestamp to another, 0 where one is missing or they are out of order."""
    if not start or not end:
        return 0
    return max(0.0, (moment(end) - moment(start)).total_seconds())


def named_job(name: str, spec: FineTuneJobSpec | None, status: FineTuneJobStatus) -> NamedJob:
    """Read another FineTuneJob as far as a job that waits for it has to know it."""
    conditions = {condition.type: condition for condition in status.conditions}
    true = {kind for kind, condition in conditions.items() if condition.status == "True"}
    progressing, failed = conditions.get(ConditionType.PROGRESSING), conditions.get(ConditionType.FAILED)
    waits = status.phase is None or (progressing is not None and progressing.reason == Reason.WAITING_FOR_JOB)
    return NamedJob(
        name=name,
        is_complete=ConditionType.COMPLETE in true,
        failure=f"{failed.reason}: {failed.message}" if failed and ConditionType.FAILED in true else "",
        artifact=status.artifact,
        waits_for=tuple(spec.named_jobs) if spec and waits else (),
    )


def controller_of(body: Object) -> str:
    """uid of the object's controller, or ""."""
    owners = body["metadata"].get("ownerReferences", ())
    return next((owner["uid"] for owner in owners if owner.get("controller")), "")


def stage_job(body: Object, complaints: Iterable[str] = ()) -> StageJob:
    """Read a Kubernetes Job of ours."""
    metadata, conditions = body["metadata"], _conditions(body)
    failed = conditions.get("Failed", {})
    return StageJob(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        stage=metadata["labels"][labels.STAGE_LABEL],
        is_suspended=bool(body["spec"].get("suspend")),
        is_complete="Complete" in conditions,
        failure=failed.get("reason", "Failed") if failed else "",
        failure_message=failed.get("message", ""),
        is_deleting="deletionTimestamp" in metadata,
        complaints=tuple(complaints),
    )


def pod(body: Object, complaints: Iterable[str] = ()) -> Pod:
    """Read a pod of ours."""
    metadata, status, conditions = body["metadata"], body.get("status", {}), _conditions(body)
    scheduled, disrupted = _condition(body, "PodScheduled"), conditions.get("DisruptionTarget")
    is_refused = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    containers = status.get("containerStatuses", ())
    container: Object = next((one for one in containers if one["name"] == labels.CONTAINER), {})
    state = container.get("state", {})
    waiting = state.get("waiting", {})
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        stage=metadata["labels"][labels.STAGE_LABEL],
        owner=controller_of(body),
        created_at=metadata.get("creationTimestamp", ""),
        ip=status.get("podIP", ""),
        port=_progress_port(body),
        phase=status.get("phase", "Pending"),
        is_deleting="deletionTimestamp" in metadata,
        disruption=disrupted.get("message", "disrupted") if disrupted else "",
        is_scheduled=scheduled.get("status") == "True",
        refused_since=scheduled.get("lastTransitionTime") or metadata["creationTimestamp"] if is_refused else "",
        refusal=scheduled.get("message", "") if is_refused else "",
        waiting=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        running_since=state.get("running", {}).get("startedAt", ""),
        termination=_termination(state["terminated"]) if "terminated" in state else None,
        end_reason=status.get("reason", ""),
        end_message=status.get("message", ""),
        complaints=tuple(complaints),
    )


def is_mounting(body: Object) -> bool:
    """True while a pod has a node and its container waits: when failed mounts are told by Events alone."""
    seen = pod(body)
    return seen.is_scheduled and not seen.running_since and seen.termination is None and not seen.is_over


def _progress_port(body: Object) -> int:
    containers = body.get("spec", {}).get("containers", ())
    ports = (port for one in containers if one["name"] == labels.CONTAINER for port in one.get("ports", ()))
    return next((port["containerPort"] for port in ports if port.get("name") == "progress"), 0)


def _termination(state: Object) -> Termination:
    return Termination(
        exit_code=state.get("exitCode", 1),
        reason=state.get("reason", ""),
        message=state.get("message", ""),
        started_at=state.get("startedAt"),
        finished_at=state.get("finishedAt"),
    )


def _conditions(body: Object) -> dict[str, Object]:
    """The conditions that are true, by type."""
    conditions = body.get("status", {}).get("conditions", ())
    return {condition["type"]: condition for condition in conditions if condition["status"] == "True"}


def _condition(body: Object, kind: str) -> Object:
    conditions = body.get("status", {}).get("conditions", ())
    return next((condition for condition in conditions if condition["type"] == kind), {})
