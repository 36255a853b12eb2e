"""What was seen of one job, in the operator's own words: raw Kubernetes objects read into small frozen values.

It decides what a raw field means and nothing about what follows from it. It does no I/O.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from finetune_api import labels
from finetune_api.events import ProgressReport
from finetune_api.reasons import ConditionType, Reason
from finetune_api.run import Run
from finetune_api.spec.job_spec import FineTuneJobSpec, Metadata
from finetune_api.stages import StageName
from finetune_api.status import Artifact, FineTuneJobStatus

Object = dict[str, Any]
SCHEDULING_SECONDS = 15
PAST_VOLUMES = ("Pulling", "Pulled", "Created", "Started")
"""What a kubelet tells of a container once volumes, network and sandbox of the pod are there."""
VOLUME = re.compile(r'volume "([^"]+)"')


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
class Waiting:
    """A container that does not run yet, and why, as the kubelet says it."""

    container: str
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Pod:
    """A pod of one of the stages."""

    name: str
    uid: str
    stage: StageName
    owner: str = ""
    """uid of the Kubernetes Job that made it."""
    job: str = ""
    """Name of that Job."""
    created_at: str = ""
    changed_at: str = ""
    """When one of its conditions changed last."""
    ip: str = ""
    port: int = 0
    """Of its progress page; 0: it names none."""
    node: str = ""
    phase: str = "Pending"
    is_deleting: bool = False
    due: str = ""
    """When a pod that is being deleted should be gone, its grace included."""
    gone_at: str = ""
    """When it was seen to be deleted; empty: it exists."""
    disruption: str = ""
    """Message of the DisruptionTarget condition; empty: nobody disrupts it."""
    is_scheduled: bool = False
    scheduler: str = "default-scheduler"
    """Name of the one that is to find a node."""
    refused_since: str = ""
    """Since when the pod is kept from a node; empty: nobody says so."""
    refusal_reason: str = ""
    """Unschedulable: no node fits. Or SchedulerError, or SchedulingGated: none was looked for."""
    refusal: str = ""
    """The scheduler's words, or the names of the gates."""
    waits: tuple[Waiting, ...] = ()
    """Containers of the pod that do not run yet, the trainer's first."""
    workspace: str = ""
    """Name of the claim that the stages share."""
    others: tuple[str, ...] = ()
    """Other containers that have not ended, or not even started, and keep the pod alive."""
    failures: tuple[tuple[str, Termination], ...] = ()
    """Other containers that ended badly, each with its name."""
    running_since: str = ""
    termination: Termination | None = None
    end_reason: str = ""
    """The pod's own reason: Evicted, NodeLost, …"""
    end_message: str = ""
    complaints: tuple[str, ...] = ()
    """The pod's warning Events, `Reason: message`: much of what keeps a pod from starting is told nowhere else."""

    @property
    def is_over(self) -> bool:
        """None of its containers runs or will run again: the workspace is free."""
        return self.phase in ("Succeeded", "Failed") or bool(self.gone_at)

    @property
    def ended_at(self) -> str:
        """When its container, else the pod, ended; empty: it has not, or nobody knows."""
        at = self.termination.finished_at if self.termination else None
        return at or self.gone_at or (self.changed_at if self.is_over else "")

    @property
    def has_started(self) -> bool:
        return bool(self.running_since) or self.termination is not None

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
    limit: int = 0
    """Failures after which it fails by itself."""
    is_suspended: bool = False
    is_complete: bool = False
    failure: str = ""
    """Reason of the Job's Failed condition; empty: it has not failed."""
    failure_message: str = ""
    is_deleting: bool = False
    is_gone: bool = False
    """It was deleted; this is what it said last."""
    started_at: str = ""
    """Since when its controller works on it."""
    queue: str = ""
    """The queue of Kueue that admits it; its own webhook may have put it there."""
    inputs: str = ""
    """Digest of the editable part of the spec that its pods are made from; empty: not known."""
    complaints: tuple[str, ...] = ()
    """Messages of the Job's warning Events: why it cannot make pods."""
    complained_at: str = ""
    """When the last of them was told last."""

    @property
    def is_finished(self) -> bool:
        return self.is_complete or bool(self.failure)


@dataclass(frozen=True)
class Claim:
    """The volume that the stages share."""

    name: str
    uid: str
    is_owned: bool = True
    """It goes with the FineTuneJob; otherwise it was let go when the job failed."""


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

    @property
    def adapter(self) -> Artifact | None:
        """What it has published, if that is what another job may start from."""
        found = self.artifact if self.is_complete else None
        return found if found is not None and found.kind == "adapter" and found.uri else None


@dataclass(frozen=True)
class RunFile:
    """The frozen run as it lies in its ConfigMap: told apart by its digest, and seldom read any further."""

    digest: str
    text: str = ""

    @property
    def image(self) -> str:
        """What it says of the image: believed only of a run that an operator without pins has begun."""
        return self._run.trainer_image if self._run else ""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The same of the URIs of the adapters that the run starts from."""
        return tuple(one.uri for one in self._run.spec.method.options.adapters) if self._run else ()

    @cached_property
    def _run(self) -> Run | None:
        try:
            return Run.model_validate_json(self.text, extra="ignore")
        except ValidationError:
            return None


@dataclass(frozen=True)
class Observed:
    """All that a decision about one job may depend on, beside the time and the settings."""

    metadata: Metadata
    spec: FineTuneJobSpec | None
    """As it is now; what cannot be read of it is taken from the frozen run. None when that does not help either."""
    status: FineTuneJobStatus = field(default_factory=FineTuneJobStatus)
    """As it was written last, as far as it can be read."""
    stored: FineTuneJobStatus | None = None
    """The same before a job that has failed was brought back; None: it was not."""
    problem: str = ""
    """Why the spec cannot be read."""
    unknown: tuple[str, ...] = ()
    """Fields of the spec that this release does not know, before the run is frozen without them."""
    run: RunFile | None = None
    """None: there is none."""
    workspace: Claim | None = None
    jobs: Mapping[StageName, StageJob] = field(default_factory=dict)
    """The present Kubernetes Job of a stage."""
    replaced: StageJob | None = None
    """The one before it, if that still exists."""
    pods: tuple[Pod, ...] = ()
    """Oldest first; those too that were seen to be deleted since the operator runs."""
    conflicts: tuple[str, ...] = ()
    """Objects in the way: they have the name of a child and another owner."""
    refusal: tuple[Reason, str] | None = None
    """What the API server answered when a child was to be created."""
    kept_job: tuple[Reason, str] | None = None
    """The same when a Kubernetes Job was to be deleted."""
    kept_workspace: str = ""
    """The same when the workspace of a job that has ended was to be deleted, or let go."""
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

    @property
    def has_workspace(self) -> bool:
        return self.workspace is not None

    @property
    def living(self) -> tuple[Pod, ...]:
        """Pods that still use the workspace, or may."""
        return tuple(pod for pod in self.pods if not pod.is_over)


def timestamp(moment: datetime) -> str:
    """As Kubernetes writes it: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    """The inverse of `timestamp`; takes fractions of a second too."""
    return datetime.fromisoformat(text)


def digest(text: str) -> str:
    """As digests are written in the status."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def run_file(body: Object) -> RunFile:
    """The ConfigMap of a frozen run, whatever is in it: its digest says whether it is the one that was pinned."""
    text = body.get("data", {}).get(labels.RUN_FILE, "")
    return RunFile(digest(text), text)


def seconds_between(start: str | None, end: str | None) -> float:
    """Seconds from one timestamp to another, 0 where one is missing or they are out of order."""
    if not start or not end:
        return 0
    return max(0.0, (moment(end) - moment(start)).total_seconds())


def published(artifact: Artifact | None, spec: FineTuneJobSpec) -> Artifact | None:
    """What a job has published, if it is where its spec says. A pod may claim another place, and jobs that start from
    this one would mount that: a claim which its author named, and was admitted with, nowhere."""
    return artifact if artifact is not None and artifact.uri == spec.output.uri else None


def named_job(name: str, spec: FineTuneJobSpec | None, status: FineTuneJobStatus) -> NamedJob:
    """Read another FineTuneJob as far as a job that waits for it has to know it."""
    conditions = {condition.type: condition for condition in status.conditions}
    true = {kind for kind, condition in conditions.items() if condition.status == "True"}
    progressing, failed = conditions.get(ConditionType.PROGRESSING), conditions.get(ConditionType.FAILED)
    waits = status.phase is None or (progressing is not None and progressing.reason == Reason.WAITING_FOR_JOB)
    return NamedJob(
        name=name,
        is_complete=ConditionType.COMPLETE in true and spec is not None,
        failure=f"{failed.reason}: {failed.message}" if failed and ConditionType.FAILED in true else "",
        artifact=published(status.artifact, spec) if spec else None,
        waits_for=tuple(spec.named_jobs) if spec and waits else (),
    )


def controller_of(body: Object) -> str:
    """uid of the object's controller, or ""."""
    owners = body["metadata"].get("ownerReferences", ())
    return next((owner["uid"] for owner in owners if owner.get("controller")), "")


def lacks_a_pod(body: Object) -> bool:
    """Whether a Kubernetes Job is to have a pod and has none: its first one, or the next after one that ended."""
    is_over = not _conditions(body).keys().isdisjoint(("Complete", "Failed", "SuccessCriteriaMet", "FailureTarget"))
    return not (body["spec"].get("suspend") or body.get("status", {}).get("active") or is_over)


def stage_job(body: Object, events: Iterable[Object] = (), is_gone: bool = False) -> StageJob:
    """Read a Kubernetes Job of ours, with the Events that tell why it makes no pod."""
    told = sorted(events, key=_told_at)
    metadata, conditions = body["metadata"], _conditions(body)
    failed = conditions.get("Failed", {})
    return StageJob(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        stage=metadata["labels"][labels.STAGE_LABEL],
        limit=body["spec"].get("backoffLimit", 6),
        is_suspended=bool(body["spec"].get("suspend")),
        is_complete="Complete" in conditions,
        failure=failed.get("reason", "Failed") if failed else "",
        failure_message=failed.get("message", ""),
        is_deleting="deletionTimestamp" in metadata,
        is_gone=is_gone,
        started_at=body.get("status", {}).get("startTime", ""),
        queue=metadata["labels"].get(labels.KUEUE_QUEUE_LABEL, ""),
        inputs=metadata.get("annotations", {}).get(labels.INPUTS_ANNOTATION, ""),
        complaints=tuple(_words(event) for event in told),
        complained_at=timestamp(_told_at(told[-1])) if told else "",
    )


def _told_at(event: Object) -> datetime:
    """When an Event was told last: most are told again and again."""
    again = event.get("lastTimestamp") or (event.get("series") or {}).get("lastObservedTime")
    return moment(again or event.get("eventTime") or event["metadata"]["creationTimestamp"])


def _standing(events: Iterable[Object]) -> list[Object]:
    """A pod's warning Events that are not over, the latest last. Times are whole seconds: of two Events in one second
    the trouble came first, since it is told again while it lasts."""
    told = sorted(events, key=_told_at)

    def is_over(warning: Object) -> bool:
        return any(_ends(event, warning) and _told_at(event) >= _told_at(warning) for event in told)

    return [event for event in told if event.get("type") == "Warning" and not is_over(event)]


def _ends(event: Object, warning: Object) -> bool:
    """Whether the trouble cannot stand any more once this has happened. Much that is told as Normal ends nothing: that
    one volume of several was attached, that no node was added."""
    if event.get("reason") == "SuccessfulAttachVolume":
        return warning.get("reason") == "FailedAttachVolume" and _volume(event) == _volume(warning)
    return event.get("type") == "Normal" and event.get("reason") in PAST_VOLUMES


def _volume(event: Object) -> str:
    found = VOLUME.search(event.get("message") or "")
    return found[1] if found else ""


def _words(event: Object) -> str:
    return f"{event.get('reason', '')}: {event.get('message', '')}"


def pod(body: Object, events: Iterable[Object] = (), gone_at: str = "") -> Pod:
    """Read a pod of ours, with its Events; `gone_at` is when it was deleted, of one that is no more."""
    metadata, status, conditions = body["metadata"], body.get("status", {}), _conditions(body)
    scheduled, disrupted = _condition(body, "PodScheduled"), conditions.get("DisruptionTarget")
    is_refused = scheduled.get("status") == "False"
    states: list[tuple[str, Object]] = [
        (container["name"], container.get("state", {}))
        for group in ("containerStatuses", "initContainerStatuses")
        for container in status.get(group, ())
    ]
    states.sort(key=lambda pair: pair[0] != labels.CONTAINER)
    state = next((state for name, state in states if name == labels.CONTAINER), {})
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        stage=metadata["labels"][labels.STAGE_LABEL],
        owner=controller_of(body),
        job=next((one["name"] for one in metadata.get("ownerReferences", ()) if one.get("controller")), ""),
        created_at=metadata.get("creationTimestamp", ""),
        changed_at=max((one.get("lastTransitionTime") or "" for one in status.get("conditions", ())), default=""),
        ip=status.get("podIP", ""),
        port=_progress_port(body),
        node=body.get("spec", {}).get("nodeName", ""),
        phase=status.get("phase", "Pending"),
        is_deleting="deletionTimestamp" in metadata,
        due=metadata.get("deletionTimestamp", ""),
        gone_at=gone_at,
        disruption=disrupted.get("message") or "disrupted" if disrupted else "",
        is_scheduled=scheduled.get("status") == "True",
        scheduler=body.get("spec", {}).get("schedulerName", "default-scheduler"),
        refused_since=scheduled.get("lastTransitionTime") or metadata["creationTimestamp"] if is_refused else "",
        refusal_reason=scheduled.get("reason", "") if is_refused else "",
        refusal=_refusal(body, scheduled.get("message", "")) if is_refused else "",
        waits=tuple(_waits(states)),
        workspace=_workspace(body),
        others=tuple(
            container["name"]
            for container in status.get("containerStatuses", ())
            if "terminated" not in container.get("state", {})
            and container["name"] != labels.CONTAINER
            and status.get("phase") not in ("Succeeded", "Failed")
        ),
        failures=tuple(
            (name, _termination(one["terminated"]))
            for name, one in states
            if name != labels.CONTAINER and one.get("terminated", {}).get("exitCode", 0) != 0
        ),
        running_since=state.get("running", {}).get("startedAt", ""),
        termination=_termination(state["terminated"]) if "terminated" in state else None,
        end_reason=status.get("reason", ""),
        end_message=status.get("message", ""),
        complaints=tuple(_words(event) for event in _standing(events)),
    )


def _refusal(body: Object, message: str) -> str:
    gates = [gate["name"] for gate in body.get("spec", {}).get("schedulingGates", ())]
    return f"{message}: {', '.join(gates)}" if gates else message


def _waits(states: Iterable[tuple[str, Object]]) -> Iterable[Waiting]:
    for name, state in states:
        if (waiting := state.get("waiting", {})).get("reason"):
            yield Waiting(name, waiting["reason"], waiting.get("message", ""))


def _workspace(body: Object) -> str:
    volumes = {volume["name"]: volume for volume in body.get("spec", {}).get("volumes", ())}
    return str(volumes.get("workspace", {}).get("persistentVolumeClaim", {}).get("claimName", ""))


def _progress_port(body: Object) -> int:
    """The port of the page as the pod itself has it: another operator, with another flag, may have made it."""
    containers = body.get("spec", {}).get("containers", ())
    ports = [port for one in containers if one["name"] == labels.CONTAINER for port in one.get("ports", ())]
    return next((port["containerPort"] for port in ports if port.get("name") == labels.PROGRESS_PORT_NAME), 0)


def is_mute(body: Object, now: datetime) -> bool:
    """Whether a pod does not start and no status tells why: it has a node, or it is older than a scheduler takes."""
    seen = pod(body)
    is_waiting = not (seen.is_over or seen.has_started or seen.refused_since)
    return is_waiting and (seen.is_scheduled or seconds_between(seen.created_at, timestamp(now)) > SCHEDULING_SECONDS)


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
