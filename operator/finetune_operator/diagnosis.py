"""What ails a pod: why it ended, or what it waits for, as one reason of the contract and one sentence for people.

It reads the trainer's report, the exit code, the kubelet's and the scheduler's words, in this order. What follows is
`plan`'s to decide.
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from finetune_api import labels
from finetune_api.events import StageReport
from finetune_api.exits import REASONS, ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import PUBLISH
from finetune_api.text import printable_lines
from finetune_operator.observed_state import (
    SCHEDULING_SECONDS,
    Object,
    Pod,
    StageJob,
    moment,
    seconds_between,
    timestamp,
)

UNSCHEDULABLE_GRACE_SECONDS = 3
"""A volume that is being made, or a pod that is just ending, settles by itself within moments."""
NODE_GRACE_SECONDS = 15
"""A kubelet that lives confirms a pod's end within moments after its grace."""

REPORTABLE = frozenset(
    {
        Reason.BAD_SPEC,
        Reason.DATASET_INVALID,
        Reason.DATASET_UNAVAILABLE,
        Reason.MODEL_UNAVAILABLE,
        Reason.MODEL_INVALID,
        Reason.INPUT_UNAVAILABLE,
        Reason.CHECKPOINT_MISMATCH,
        Reason.ACCESS_DENIED,
        Reason.UNSUPPORTED,
        Reason.GPU_UNAVAILABLE,
        Reason.OUT_OF_MEMORY,
        Reason.DIVERGED,
        Reason.OUTPUT_NOT_WRITABLE,
        Reason.ARTIFACT_PUSH_FAILED,
        Reason.ARTIFACT_INVALID,
        Reason.INTERNAL_ERROR,
        Reason.PREEMPTED,
        Reason.RUN_CHANGED,
    }
)
"""What a trainer may say of its own end. It is not asked about the cluster."""

STOPPED = (ExitCode.STOPPED, ExitCode.TERMINATED, ExitCode.KILLED)
"""How a container ends that was told to: in time with a checkpoint, without one, or killed when its grace was over."""

_STARTING = ("ContainerCreating", "PodInitializing")
"""What a container waits for that nothing keeps from starting; every other word of the kubelet's is a trouble."""
_IMAGE = re.compile(r"Image|Registry|Signature")
_MOUNT = r'(?:MountVolume\S* failed for volume "[^"]+" : )?references '
_NOT_FOUND = (
    (re.compile(r'(?i)\bsecrets? "[^"]+" not found'), Reason.SECRET_NOT_FOUND),
    (re.compile(r'(?i)\bconfigmaps? "[^"]+" not found'), Reason.CONFIG_MAP_NOT_FOUND),
    (re.compile(r'(?i)\bpersistentvolumeclaims? "[^"]+" not found'), Reason.VOLUME_NOT_READY),
    (re.compile(rf"couldn't find key \S+ in Secret \S+|{_MOUNT}non-existent secret key: \S+"), Reason.SECRET_NOT_FOUND),
    (
        re.compile(rf"couldn't find key \S+ in ConfigMap \S+|{_MOUNT}non-existent config key: \S+"),
        Reason.CONFIG_MAP_NOT_FOUND,
    ),
)
_OWN_FAULT = re.compile(rf"exceed|Container {labels.CONTAINER} was using .*has larger consumption", re.IGNORECASE)
"""The kubelet's words for a pod that it evicts for what that pod itself used: over a limit of its own, or beyond what
it had asked for on a node that runs short."""
_OTHER_ZONE = re.compile(
    r"volume node affinity conflict|didn't match PersistentVolume's node affinity|no available volume zone"
)
"""The scheduler's words for a bound volume that no fitting node reaches, in every release of Kubernetes."""
_NO_VOLUME = re.compile(
    r"^(?!.*node\(s\)).*persistentvolumeclaim|bound to non-existent p|not have enough free storage|ReadWriteOncePod",
    re.IGNORECASE,
)
"""Its words for a claim that is missing, unbound, lost, too large or in use, rather than for nodes that do not fit."""
_SCHEDULER = "FailedScheduling: "
_PASSING = (
    "failed to sync",
    "FailedToRetrieveImagePullSecret",
    "AlreadyMountedVolume",
    "DNSConfigForming",
    "MissingClusterDNS",
)
"""Warnings that stop nothing: the kubelet's caches lag behind a fresh pod, an image may need no pull secret, another
pod has the volume with another fsGroup, some search domains are left out (kubernetes: pkg/kubelet/events/event.go)."""
_STORAGE = ("FailedMount", "FailedAttachVolume", "FailedMapVolume", "VolumeResizeFailed")
_LARGEST = 2**53
"""Integers beyond it do not survive JSON, and the API server refuses the whole status."""


@dataclass(frozen=True)
class Ending:
    """How a pod ended."""

    reason: Reason
    message: str = ""
    report: StageReport | None = None


@dataclass(frozen=True)
class Obstacle:
    """What keeps a pod from running."""

    reason: Reason
    message: str


def ending(pod: Pod) -> Ending | None:
    """How the pod ended; None while it has not. The trainer's container decides, whatever else runs in the pod."""
    if pod.termination is None:
        return _without_container(pod) if pod.is_over else None
    report = stage_report(pod)
    if pod.termination.exit_code == ExitCode.DONE:
        return Ending(Reason.SUCCEEDED, report=report)
    if pod.end_reason == "Evicted" and _OWN_FAULT.search(pod.end_message):
        return Ending(Reason.EVICTED, f"the pod was evicted: {pod.end_message}", report)
    if pod.disruption:
        return Ending(Reason.PREEMPTED, pod.disruption, report)
    was_told = pod.is_deleting or pod.end_reason == "Evicted"
    if was_told and pod.termination.exit_code in STOPPED and pod.termination.reason != "OOMKilled":
        return Ending(Reason.PREEMPTED, pod.end_message or "the pod was deleted", report)
    return _by_report(pod, report) or _by_exit_code(pod, report)


def stage_report(pod: Pod) -> StageReport | None:
    """The pod's last word; None where it left none, or garbage."""
    if pod.termination is None or not pod.termination.message:
        return None
    try:
        report = StageReport.model_validate(_shown(json.loads(pod.termination.message)), extra="ignore")
    except ValueError:  # no JSON, or no report
        return None
    return report if report.stage == pod.stage and _is_storable(report) else None


def obstacle(pod: Pod, now: datetime) -> Obstacle | None:
    """What keeps a pod from starting; None while nothing is wrong.

    In this order: the scheduler, a missing object by name (whoever tells of it), images, other waits, Events; last,
    that nobody says anything.
    """
    if pod.is_over or pod.has_started:
        return None
    if pod.refused_since:
        return _refused(pod, now)
    return _missing_object(pod) or _waiting_container(pod) or _by_events(pod) or _unseen(pod, now)


def _missing_object(pod: Pod) -> Obstacle | None:
    for pattern, reason in _NOT_FOUND:
        words = (pattern.search(text) for text in [*(wait.message for wait in pod.waits), *pod.complaints])
        if match := next((found for found in words if found), None):
            return Obstacle(reason, match.group(0))
    return None


def _waiting_container(pod: Pod) -> Obstacle | None:
    """Of several, the one whose image cannot be pulled: that is the surest."""
    troubles = [wait for wait in pod.waits if wait.reason not in _STARTING]
    images = [wait for wait in troubles if _IMAGE.search(wait.reason)]
    if not troubles:
        return None
    wait = (images or troubles)[0]
    reason = Reason.IMAGE_PULL_FAILED if images else Reason.POD_NOT_STARTING
    return Obstacle(reason, f"container {wait.container}: {wait.reason}: {wait.message}")


def _by_events(pod: Pod) -> Obstacle | None:
    passing = (*_PASSING, *((_SCHEDULER,) if pod.is_scheduled else ()))
    stuck = [text for text in pod.complaints if not any(words in text for words in passing)]
    if not stuck:
        return None
    if stuck[-1].startswith(_SCHEDULER):
        return _without_node(pod, stuck[-1].removeprefix(_SCHEDULER))
    where = f" (pod {pod.name} on node {pod.node})" if pod.node else ""
    is_storage = stuck[-1].startswith(_STORAGE)
    return Obstacle(Reason.VOLUME_NOT_READY if is_storage else Reason.POD_NOT_STARTING, stuck[-1] + where)


def refused(status: int, message: str, fields: tuple[str, ...] = ()) -> Obstacle:
    """What it means that the API server did not take one of our objects: its code, its words, and those fields of ours
    that it blames. Only for these it is the spec's fault: a policy, too, may answer 400, 403 or 422."""
    if status == 403 and _LACKS_RIGHT.search(message):
        return Obstacle(Reason.OPERATOR_FORBIDDEN, message)
    if status >= 500 or status in (0, 408, 429):
        return Obstacle(Reason.SERVER_UNAVAILABLE, message)
    for pattern, reason in _TOLD:
        if pattern.search(message):
            return Obstacle(reason, message)
    by_policy = _BY_POLICY.search(message) is not None
    if status == 409 and not by_policy:
        return Obstacle(Reason.SERVER_UNAVAILABLE, message)  # somebody else was writing, a quota's own status mostly
    is_ours = status in (400, 422) and bool(fields)
    return Obstacle(Reason.BAD_SPEC if is_ours and not by_policy else Reason.POLICY_DENIED, message)


def has_field(manifest: Object, path: str) -> bool:
    """Whether an object holds the field that a server blames, `spec.template.spec.containers[0].image`: a mutating
    policy adds fields that nobody but its author can mend."""
    here: Any = manifest
    for name in re.findall(r"(?<=\[)[^]]+|[^][.]+", path):
        parts = {str(place): part for place, part in enumerate(here)} if isinstance(here, list) else here
        if isinstance(parts, dict) and name in ("labels", "annotations"):
            parts = parts.get("metadata", parts)  # those of a pod template are blamed without it
        if not isinstance(parts, dict) or name not in parts:
            return False
        here = parts[name]
    return here is not manifest


_LACKS_RIGHT = re.compile(r'User "[^"]*" cannot ')
_BY_POLICY = re.compile(r"denied (the )?request|admission webhook|AdmissionPolicy", re.IGNORECASE)
_TOLD = (
    (re.compile(r"exceeded quota: .*requested: [^:]*\b(count/)?jobs\.batch="), Reason.JOB_QUOTA_EXCEEDED),
    (re.compile(r"exceeded quota|failed quota"), Reason.QUOTA_EXCEEDED),
    (re.compile(r"(maximum|minimum) [\w./-]+ usage per|limit to request ratio per"), Reason.LIMIT_RANGE),
    (
        re.compile(r'no PriorityClass with name \S+ was found|(?i:service ?account|runtimeclass) "[^"]+" not found'),
        Reason.POD_REFERENCE_NOT_FOUND,
    ),
)
_FAILS = re.compile(
    r"Internal error occurred|failed calling webhook|request did not complete|etcdserver:|deadline exceeded|[Tt]imeout"
    r"|timed out|unable to handle the request|[Tt]oo many requests|connection (refused|reset)|unexpected EOF|dial tcp"
    r"|\b(Get|Post|Put|Patch|Delete) \"https?://"
)
"""The words of an API server that fails, where no status code is told beside them; the last are those of Go's HTTP
client for a request that got no answer, whatever broke it."""
_ANSWERS = re.compile(r"is forbidden|is invalid|denied (the )?request")


def unmade(job: StageJob, since: str = "") -> Obstacle | None:
    """Why a Kubernetes Job makes no pod, or none after `since`, when the last one ended."""
    if not job.complaints or (since and moment(job.complained_at) <= moment(since)):
        return None
    words = job.complaints[-1]
    is_failure = _FAILS.search(words) is not None and not _ANSWERS.search(words)
    return refused(500 if is_failure else 403, words)


def stuck_in_deletion(pod: Pod, now: datetime) -> Obstacle | None:
    """A pod that should be gone by now: its node does not answer, so nobody knows whether it still writes."""
    if not pod.due or pod.is_over or (now - moment(pod.due)).total_seconds() < NODE_GRACE_SECONDS:
        return None
    node = pod.node or "NODE"
    return Obstacle(
        Reason.NODE_LOST,
        f"pod {pod.name} was to be gone at {pod.due} and its node {node} has not confirmed it: "
        f"`kubectl get node {node}`; then `kubectl delete node {node}`, or "
        f"`kubectl taint node {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute`",
    )


def seconds_of_grace(pod: Pod, now: datetime) -> float:
    """Seconds until the scheduler's refusal counts; 0 when it does, or there is none."""
    if not pod.refused_since or _missing(pod.refusal):
        return 0
    return max(0.0, UNSCHEDULABLE_GRACE_SECONDS - (now - moment(pod.refused_since)).total_seconds())


def _refused(pod: Pod, now: datetime) -> Obstacle | None:
    if seconds_of_grace(pod, now):
        return None
    found = _without_node(pod, pod.refusal)
    if found.reason is Reason.UNSCHEDULABLE and pod.refusal_reason not in ("", "Unschedulable"):
        return Obstacle(Reason.NOT_SCHEDULED, f"{pod.refusal_reason}: {pod.refusal}")
    return found


def _unseen(pod: Pod, now: datetime) -> Obstacle | None:
    """A pod that no scheduler has a word about."""
    if pod.is_scheduled or seconds_between(pod.created_at, timestamp(now)) <= SCHEDULING_SECONDS:
        return None
    return Obstacle(
        Reason.NOT_SCHEDULED, f"no scheduler has looked at the pod {pod.name}: it is left to one named {pod.scheduler}"
    )


def _without_node(pod: Pod, words: str) -> Obstacle:
    """What a scheduler's words mean."""
    if _OTHER_ZONE.search(words):
        return Obstacle(
            Reason.VOLUME_ZONE_CONFLICT,
            f"{words} A volume of the pod is bound to a zone where no node fits it: most likely the workspace "
            f"volume {pod.workspace}, which was bound where the first stage ran, else a claim that a URI names",
        )
    is_volume = _NO_VOLUME.search(words) is not None
    return Obstacle(Reason.VOLUME_NOT_READY if is_volume else Reason.UNSCHEDULABLE, words)


def _missing(words: str) -> bool:
    return any(pattern.search(words) for pattern, _ in _NOT_FOUND)


def _without_container(pod: Pod) -> Ending:
    """The pod ended before its trainer ran: evicted, its node was lost, or another container failed."""
    if pod.end_reason == "Evicted" and _OWN_FAULT.search(pod.end_message):
        return Ending(Reason.EVICTED, f"the pod was evicted: {pod.end_message}")
    if pod.disruption or pod.gone_at or pod.is_deleting:
        return Ending(Reason.PREEMPTED, pod.disruption or "the pod was deleted")
    if pod.failures and not pod.end_reason:
        name, how = pod.failures[0]
        words = how.message or how.reason
        told = f"container {name} ended with exit code {how.exit_code}"
        return Ending(Reason.POD_NOT_STARTING, f"{told}: {words}" if words else told)
    return Ending(Reason.RETRYING, f"{pod.end_reason or 'the pod failed'}: {pod.end_message or 'no container ran'}")


def _by_report(pod: Pod, report: StageReport | None) -> Ending | None:
    if report is None or report.reason not in REPORTABLE:
        return None
    if report.reason is Reason.INTERNAL_ERROR and pod.termination is not None and pod.termination.reason == "OOMKilled":
        return None
    return Ending(report.reason, report.message, report)


def _by_exit_code(pod: Pod, report: StageReport | None) -> Ending:
    assert pod.termination is not None
    code, place = pod.termination.exit_code, f"the {pod.stage} container"
    if pod.termination.reason == "ContainerStatusUnknown":
        return Ending(Reason.RETRYING, f"the kubelet lost {place}, and does not know how it ended", report)
    if pod.termination.reason == "OOMKilled" or code == ExitCode.KILLED:
        return Ending(
            Reason.OUT_OF_MEMORY, f"{place} was killed: it needed more memory than resources.memory allows", report
        )
    if pod.stage == PUBLISH and code == ExitCode.CANNOT_WRITE:
        return Ending(Reason.ARTIFACT_PUSH_FAILED, f"{place} could not write (exit code {code})", report)
    reason = next((meaning for known, meaning in REASONS.items() if known == code), Reason.INTERNAL_ERROR)
    return Ending(reason, f"{place} ended with exit code {code} and left no report", report)


def _shown(value: Any) -> Any:
    """The same, its texts fit for a terminal: they end up in conditions, Events and `kubectl get`."""
    if isinstance(value, dict):
        return {name: _shown(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_shown(part) for part in value]
    return printable_lines(value) if isinstance(value, str) else value


def _is_storable(value: Any) -> bool:
    """No integer in it is larger than the API server takes."""
    if isinstance(value, BaseModel):
        return all(_is_storable(getattr(value, name)) for name in type(value).model_fields)
    if isinstance(value, list):
        return all(_is_storable(item) for item in value)
    return not isinstance(value, int) or abs(value) <= _LARGEST
