"""The attempts of a job: one for each pod that ran, when and how it ended, and what it cost.

It decides what an ended pod counts as. Attempts become history: what one cost is added up once, in the pass that sees
its end, and stays right when the list forgets it. Whether another attempt follows is `plan`'s business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune_api import status as api
from finetune_api.events import ProgressReport
from finetune_api.reasons import Reason
from finetune_api.stages import PREPARE, STAGES, TRAIN, StageName
from finetune_operator.diagnosis import NODE_GRACE_SECONDS, Ending, ending
from finetune_operator.observed_state import Observed, Pod, seconds_between, timestamp

KEPT = 100
FREE = (Reason.PREEMPTED, Reason.SUSPENDED, Reason.SUCCEEDED)
"""Ends that are no failure: the pod was told to stop, or it is done."""


@dataclass(frozen=True)
class History:
    """What the attempts of a job amount to."""

    stage: api.StageStatus
    attempts: tuple[api.Attempt, ...] = ()
    """Of train; those of the present CPU stage stand in `stage`."""
    usage: api.Usage | None = None
    recovery: api.Recovery | None = None


def history(observed: Observed, stage: StageName, now: datetime, end: Reason | None = None) -> History:
    """The attempts as they stand, with `stage` as the present one. `end`, the job's own, closes those that are open."""
    status = observed.status
    # A status of before there were stages in it: the pods tell.
    present = status.stage or api.StageStatus(name=TRAIN if observed.pods_of(TRAIN) else PREPARE)
    trained, ended = _brought_up(status.attempts, observed.pods_of(TRAIN), observed, now, end)
    usage, recovery = _trained(observed, status.usage, status.recovery, trained, ended)
    if present.name == TRAIN:
        present = _tried(present, ended)
    elif present.name in STAGES:
        mine, ended = _brought_up(present.attempts, _ended(observed.pods_of(present.name)), observed, now, end)
        present = _tried(present, ended).model_copy(update={"attempts": mine[-KEPT:]})
        usage = _with_seconds(usage, ended)
    if present.name != stage:
        present = api.StageStatus(name=stage)
    return History(present, tuple(trained[-KEPT:]), usage, recovery)


def started_at(pod: Pod) -> str | None:
    return pod.running_since or (pod.termination.started_at if pod.termination else None)


def last_known(pod: Pod, observed: Observed, now: datetime) -> str:
    """The latest moment at which the pod, that has not ended, is known to have run: not now, where its node is lost."""
    end = pod.gone_at or timestamp(now)
    if not pod.due or seconds_between(pod.due, end) < NODE_GRACE_SECONDS:
        return end
    page = _page(observed, started_at(pod), pod)
    return (page and page.updated_at) or pod.due


def _ended(pods: Sequence[Pod]) -> tuple[Pod, ...]:
    """Of prepare and publish only ended pods are listed: open ones would cost a write of the status for each stage."""
    return tuple(pod for pod in pods if ending(pod) is not None)


def _began(pod: Pod) -> str | None:
    """When it started; when it was made, if it failed before it could. None: it counts for nothing."""
    end = ending(pod)
    return started_at(pod) or (pod.created_at if end is not None and end.reason not in FREE else None)


def _brought_up(
    listed: Sequence[api.Attempt], pods: Sequence[Pod], observed: Observed, now: datetime, end: Reason | None
) -> tuple[list[api.Attempt], list[tuple[api.Attempt, api.Attempt | None]]]:
    """The attempts listed already, brought up to date, then new ones; and those that ended just now, each with the one
    before it. Pods older than the last one listed were listed once and are forgotten."""
    there = {pod.name: pod for pod in pods}
    known = {attempt.pod for attempt in listed}
    since = max((attempt.started_at or "" for attempt in listed), default="")
    began = {name: start for name, pod in there.items() if (start := _began(pod)) is not None}
    fresh = [name for name in began if name not in known and began[name] >= since]
    attempts = list(listed)
    for name in sorted(fresh, key=began.__getitem__):
        number = attempts[-1].number + 1 if attempts else 1
        attempts.append(api.Attempt(number=number, pod=name, started_at=started_at(there[name])))
    ended = []
    for place, attempt in enumerate(attempts):
        following = attempts[place + 1].started_at if place + 1 < len(attempts) else None
        closed = _closed(attempt, there.get(attempt.pod or ""), following, observed, now, end)
        if closed is not None:
            attempts[place] = closed
            ended.append((closed, attempts[place - 1] if place else None))
    return attempts, ended


def _closed(
    attempt: api.Attempt, pod: Pod | None, following: str | None, observed: Observed, now: datetime, end: Reason | None
) -> api.Attempt | None:
    """The attempt with its end; None while it is open, or when it has ended before and is history."""
    if attempt.finished_at:
        return None
    how = ending(pod) if pod else None
    if pod is not None and how is None and end is None:
        return None
    report, page = _last_report(pod, how, observed), _page(observed, attempt.started_at, pod)
    return attempt.model_copy(
        update={
            "finished_at": _finished_at(attempt, pod, following, observed, now),
            "reason": _reason(how, observed, end if pod is not None else None),
            "from_step": report.resumed_from_step if report else attempt.from_step,
            "to_step": report.step if report else page and page.step,
            "checkpoint_step": report.checkpoint_step if report else page and page.checkpoint_step,
        }
    )


def _finished_at(
    attempt: api.Attempt, pod: Pod | None, following: str | None, observed: Observed, now: datetime
) -> str:
    """When it ended, at the latest moment that is known of it. Nobody is billed for hours in which nobody looked."""
    if pod is not None and pod.termination is not None and pod.termination.finished_at:
        return pod.termination.finished_at
    if pod is not None:
        return (pod.changed_at if pod.is_over and not pod.gone_at else "") or last_known(pod, observed, now)
    page = _page(observed, attempt.started_at, pod)
    known = (page and page.updated_at) or attempt.started_at or ""
    return min(known, following) if following else known


def _reason(how: Ending | None, observed: Observed, end: Reason | None) -> Reason:
    if end is Reason.DEADLINE_EXCEEDED or (end is not None and how is None):
        return end
    stopped = how is None or how.reason is Reason.PREEMPTED
    if stopped and observed.spec is not None and observed.spec.suspend:
        return Reason.SUSPENDED
    return how.reason if how else Reason.PREEMPTED


def _last_report(pod: Pod | None, how: Ending | None, observed: Observed) -> ProgressReport | None:
    if how is not None and how.report is not None and how.report.progress is not None:
        return how.report.progress
    return observed.reports.get(pod.uid) if pod else None


def _page(observed: Observed, since: str | None, pod: Pod | None) -> api.Progress | None:
    """The last page that is stored of train, if it is younger than `since`: an operator that restarts has no other."""
    page = observed.status.progress
    if page is None or page.stage != TRAIN or (pod is not None and pod.stage != TRAIN):
        return None
    return page if (page.updated_at or "") >= (since or "") else None


Ended = Sequence[tuple[api.Attempt, api.Attempt | None]]


def _tried(stage: api.StageStatus, ended: Ended) -> api.StageStatus:
    """The tries that count: a checkpoint that got further makes good what failed before it, and that end itself."""
    tries, furthest = stage.tries, stage.checkpoint_step
    for attempt, _ in ended:
        if (attempt.checkpoint_step or 0) > max(furthest or 0, attempt.from_step or 0):
            tries, furthest = 0, attempt.checkpoint_step
        elif attempt.reason not in FREE:
            tries += 1
    return stage.model_copy(update={"tries": tries, "checkpoint_step": furthest})


def _trained(
    observed: Observed,
    usage: api.Usage | None,
    recovery: api.Recovery | None,
    attempts: Sequence[api.Attempt],
    ended: Ended,
) -> tuple[api.Usage | None, api.Recovery | None]:
    """The totals of train, with what ended just now added."""
    if not attempts:
        return usage, recovery
    gpus = observed.spec.resources.gpus if observed.spec else 0
    usage, lost = usage or api.Usage(), recovery.steps_lost if recovery else 0
    # A status of before there was a total for all stages has the seconds of train alone.
    usage = usage.model_copy(update={"stage_seconds": max(usage.stage_seconds, usage.active_seconds)})
    for attempt, before in ended:
        seconds = seconds_between(attempt.started_at, attempt.finished_at)
        usage = usage.model_copy(
            update={
                "active_seconds": usage.active_seconds + round(seconds),
                "gpu_seconds": usage.gpu_seconds + round(seconds) * gpus,
                "wasted_gpu_seconds": usage.wasted_gpu_seconds + round(seconds * _share_lost(attempt)) * gpus,
            }
        )
        lost += _steps_lost(before, attempt)
    return _with_seconds(usage, ended), api.Recovery(restarts=attempts[-1].number - 1, steps_lost=lost)


def _with_seconds(usage: api.Usage | None, ended: Ended) -> api.Usage | None:
    """The total over all stages, with what ended just now added."""
    seconds = sum(round(seconds_between(attempt.started_at, attempt.finished_at)) for attempt, _ in ended)
    if not seconds:
        return usage
    usage = usage or api.Usage()
    return usage.model_copy(update={"stage_seconds": usage.stage_seconds + seconds})


def _steps_lost(before: api.Attempt | None, attempt: api.Attempt) -> int:
    """Steps that the attempt did again; 0 where it is not known."""
    if before is None or before.to_step is None or attempt.from_step is None:
        return 0
    return max(0, before.to_step - attempt.from_step)


def _share_lost(attempt: api.Attempt) -> float:
    """The part of an ended attempt that no later one can build on: 0 to 1."""
    if attempt.reason == Reason.SUCCEEDED:
        return 0
    start, end = attempt.from_step or 0, attempt.to_step or 0
    kept = max(start, attempt.checkpoint_step or 0)
    return min(1.0, max(0, end - kept) / (end - start)) if end > start else 1
