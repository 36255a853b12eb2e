"""What ails a pod: why it ended, or what it waits for, as one reason of the contract and one sentence for people.

It reads the trainer's report, the exit code, the kubelet's and the scheduler's words, in this order. What follows is
`plan`'s to decide.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ValidationError

from finetune_api.events import StageReport
from finetune_api.exits import REASONS, ExitCode
from finetune_api.reasons import Reason
from finetune_operator.facts import Pod, StageJob, moment

UNSCHEDULABLE_GRACE_SECONDS = 3
"""A volume that is being made, or a pod that is just ending, settles by itself within moments."""

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
    }
)
"""What a trainer may say of its own end. It is not asked about the cluster."""

STOPPED = (ExitCode.STOPPED, ExitCode.TERMINATED, ExitCode.KILLED)
"""How a container ends that was told to: in time with a checkpoint, without one, or killed when its grace was over."""

_IMAGE = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
)
_NOT_FOUND = (
    (re.compile(r'(?i)\bsecrets? "[^"]+" not found'), Reason.SECRET_NOT_FOUND),
    (re.compile(r'(?i)\bconfigmaps? "[^"]+" not found'), Reason.CONFIG_MAP_NOT_FOUND),
    (re.compile(r'(?i)\bpersistentvolumeclaims? "[^"]+" not found'), Reason.VOLUME_NOT_READY),
)
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
    """How the pod ended; None while it has not."""
    if pod.termination is None:
        return _without_container(pod) if pod.is_over else None
    report = stage_report(pod)
    if pod.termination.exit_code == ExitCode.DONE:
        return Ending(Reason.SUCCEEDED, report=report)
    if pod.disruption:
        return Ending(Reason.PREEMPTED, pod.disruption, report)
    if pod.is_deleting and pod.termination.exit_code in STOPPED and pod.termination.reason != "OOMKilled":
        return Ending(Reason.PREEMPTED, "the pod was deleted", report)
    return _by_report(pod, report) or _by_exit_code(pod, report)


def stage_report(pod: Pod) -> StageReport | None:
    """The pod's last word; None where it left none, or garbage."""
    if pod.termination is None or not pod.termination.message:
        return None
    try:
        report = StageReport.model_validate_json(pod.termination.message)
    except ValidationError:
        return None
    return report if report.stage == pod.stage and _is_storable(report) else None


def obstacle(pod: Pod, now: datetime) -> Obstacle | None:
    """What keeps a pod from starting; None while nothing is wrong."""
    if pod.is_over or pod.running_since:
        return None
    if pod.refused_since:
        return _refused(pod, now)
    if pod.waiting in _IMAGE:
        return Obstacle(Reason.IMAGE_PULL_FAILED, f"{pod.waiting}: {pod.waiting_message}")
    words = [pod.waiting_message, *pod.complaints]
    for pattern, reason in _NOT_FOUND:
        if match := next((found for found in map(pattern.search, words) if found), None):
            return Obstacle(reason, match.group(0))
    if pod.waiting in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        return Obstacle(Reason.RETRYING, f"{pod.waiting}: {pod.waiting_message}")
    # The kubelet's caches lag behind a fresh pod; it says so once and goes on.
    stuck = [words for words in pod.complaints if "failed to sync" not in words]
    return Obstacle(Reason.VOLUME_NOT_READY, stuck[-1]) if stuck else None


def unmade(job: StageJob) -> Obstacle | None:
    """Why a Kubernetes Job makes no pods: a quota, or a policy of the namespace."""
    return Obstacle(Reason.UNSCHEDULABLE, job.complaints[-1]) if job.complaints else None


def seconds_of_grace(pod: Pod, now: datetime) -> float:
    """Seconds until the scheduler's refusal counts; 0 when it does, or there is none."""
    if not pod.refused_since or _missing(pod.refusal):
        return 0
    return max(0.0, UNSCHEDULABLE_GRACE_SECONDS - (now - moment(pod.refused_since)).total_seconds())


def _refused(pod: Pod, now: datetime) -> Obstacle | None:
    if seconds_of_grace(pod, now):
        return None
    is_volume = "persistentvolumeclaim" in pod.refusal.lower() and "node(s)" not in pod.refusal
    return Obstacle(Reason.VOLUME_NOT_READY if is_volume else Reason.UNSCHEDULABLE, pod.refusal)


def _missing(words: str) -> bool:
    return any(pattern.search(words) for pattern, _ in _NOT_FOUND)


def _without_container(pod: Pod) -> Ending:
    """The pod ended and no container status tells how: evicted before it ran, or its node was lost."""
    if pod.disruption:
        return Ending(Reason.PREEMPTED, pod.disruption)
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
    if pod.termination.reason == "OOMKilled" or code == ExitCode.KILLED:
        return Ending(
            Reason.OUT_OF_MEMORY, f"{place} was killed: it needed more memory than resources.memory allows", report
        )
    if pod.end_reason == "Evicted":
        return Ending(Reason.RETRYING, f"the pod was evicted: {pod.end_message}", report)
    if pod.stage == "publish" and code == ExitCode.CANNOT_WRITE:
        return Ending(Reason.ARTIFACT_PUSH_FAILED, f"{place} could not write (exit code {code})", report)
    reason = next((meaning for known, meaning in REASONS.items() if known == code), Reason.INTERNAL_ERROR)
    return Ending(reason, f"{place} ended with exit code {code} and left no report", report)


def _is_storable(value: Any) -> bool:
    """No integer in it is larger than the API server takes."""
    if isinstance(value, BaseModel):
        return all(_is_storable(getattr(value, name)) for name in type(value).model_fields)
    if isinstance(value, list):
        return all(_is_storable(item) for item in value)
    return not isinstance(value, int) or abs(value) <= _LARGEST
