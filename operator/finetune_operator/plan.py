"""What is to be done about a job: from what is observed and the time, children to make and to delete, a status, events.

A pure function. It may be called any number of times, from any state: what is done already is not planned again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from finetune_api import labels
from finetune_api import status as api
from finetune_api.reasons import ConditionType, Phase, Reason
from finetune_operator import objects
from finetune_operator.diagnosis import Ending, ending, obstacle, seconds_of_grace, unmade
from finetune_operator.facts import Observed, Pod, StageJob, StageName, moment, seconds_between, timestamp
from finetune_operator.pods import kueue_labels
from finetune_operator.settings import Settings
from finetune_operator.status import (
    PHASES,
    Milestones,
    Verdict,
    condition,
    is_finished,
    is_true,
    milestones,
    settled_progress,
    summarise,
    with_next_step,
)

Object = dict[str, Any]

CONFLICT_SECONDS = 10
"""An object in the way is nobody's event: look again after so long."""
TOLD = dict.fromkeys((Reason.TRAINING, Reason.SUSPENDED, Reason.SUCCEEDED, Reason.WAITING_FOR_JOB), "Normal")
"""Reasons of Progressing that are worth a Kubernetes Event although nothing is wrong."""
UNTOLD = frozenset(
    {Reason.PREPARING, Reason.QUEUED, Reason.STARTING, Reason.PUBLISHING, Reason.SUSPENDING, Reason.RESUMED}
)


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event about the job."""

    type: str
    reason: Reason
    message: str


@dataclass(frozen=True)
class Plan:
    """What to do, in this order: delete, create, status, progress, events."""

    delete: tuple[StageJob, ...] = ()
    create: tuple[Object, ...] = ()
    status: api.FineTuneJobStatus | None = None
    """None: leave it."""
    progress: api.Progress | None = None
    """What `status.progress` should say; None: nothing."""
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    """Seconds; None: not before something changes."""
    expire: bool = False
    """Delete the FineTuneJob itself: its time after the end is over."""


def plan(observed: Observed, settings: Settings, now: datetime) -> Plan:
    """Decide."""
    if observed.metadata.deletion_timestamp:
        return Plan(progress=observed.status.progress)
    if is_finished(observed.status):
        return _after_the_end(observed, now)
    reached = milestones(observed)
    verdict = judge(observed, reached, now)
    status = summarise(observed, reached, verdict, now)
    return Plan(
        delete=_deletions(observed, reached, verdict),
        create=_creations(observed, reached, verdict, settings),
        status=status,
        progress=settled_progress(observed, verdict, now),
        events=_events(observed.status, status),
        requeue_after=_requeue_after(observed, verdict, now),
    )


def _after_the_end(observed: Observed, now: datetime) -> Plan:
    """Nothing but to delete the job in time, if that is asked for."""
    rest = Plan(progress=observed.status.progress)
    ttl = observed.spec.ttl_seconds_after_finished if observed.spec else None
    if ttl is None or observed.status.finished_at is None:
        return rest
    left = ttl - (now - moment(observed.status.finished_at)).total_seconds()
    return replace(rest, requeue_after=left) if left > 0 else replace(rest, expire=True)


def judge(observed: Observed, reached: Milestones, now: datetime) -> Verdict:
    """How the job stands: the first rule that has something to say."""
    verdicts = (rule(observed, reached, now) for rule in RULES)
    return next(verdict for verdict in verdicts if verdict is not None)


Rule = Callable[[Observed, Milestones, datetime], Verdict | None]


def _bad_spec(observed: Observed, reached: Milestones, now: datetime) -> Verdict | None:
    if observed.spec is None:
        return _failed(Reason.BAD_SPEC, observed.problem)
    if observed.refusal is not None and observed.refusal[0] is Reason.BAD_SPEC:
        return _failed(*observed.refusal)
    return None


def _published(observed: Observed, reached: Milestones, now: datetime) -> Verdict | None:
    """Succeeded means: published, read back, and the digest is known."""
    job = observed.jobs.get("publish")
    if not reached.is_trained or job is None or not job.is_complete:
        return None
    if reached.artifact is not None and reached.artifact.digest:
        return Verdict(Phase.SUCCEEDED, Reason.SUCCEEDED, f"published at {reached.artifact.uri}", is_progressing=False)
    if any(pod.is_over for pod in observed.tries("publish")):
        return _failed(Reason.ARTIFACT_INVALID, "publish ended without naming a digest")
    # Its pod is gone, and its report with it: publish again, it only has to verify.
    return Verdict(
        Phase.PUBLISHING,
        Reason.RETRYING,
        with_next_step(Reason.RETRYING, "publish's report is lost"),
        is_progressing=False,
    )


def _job_failed(observed: Observed, reached: Milestones, now: datetime) -> Verdict | None:
    job = observed.jobs.get(reached.stage)
    if job is None or not job.failure:
        return None
    end = last_ending(observed, reached.stage)
    reason, message = (end.reason, end.message) if end else (Reason.RETRY_LIMIT_EXCEEDED, job.failure_message)
    if reason in (Reason.PREEMPTED, Reason.RETRYING, Reason.SUCCEEDED):
        reason = Reason.RETRY_LIMIT_EXCEEDED
    tries = len([pod for pod in observed.tries(reached.stage) if pod.is_over and not pod.disruption])
    if job.failure == "BackoffLimitExceeded" and tries > 1:
        message = f"{message} (after {tries} tries)"
    if reached.stage == "publish" and reason in (
        Reason.OUTPUT_NOT_WRITABLE,
        Reason.INTERNAL_ERROR,
        Reason.RETRY_LIMIT_EXCEEDED,
    ):
        reason = Reason.ARTIFACT_PUSH_FAILED
    verdict = _failed(reason, message)
    if reached.stage == "publish" and reason is not Reason.ARTIFACT_PUSH_FAILED:
        return replace(verdict, message=f"{verdict.message} The trained weights are kept on the workspace.")
    return verdict


def _deadline(observed: Observed, reached: Milestones, now: datetime) -> Verdict | None:
    left = _seconds_left(observed, now)
    if left is None or left > 0 or observed.spec is None:
        return None
    return _failed(Reason.DEADLINE_EXCEEDED, f"the job was active for {observed.spec.deadline_seconds} seconds")


def _suspension(observed: Observed, reached: Milestones, now: datetime) -> Verdict | None:
    if observed.spec is None or not observed.spec.suspend:
        return None
    if any(not pod.is_over for pod in observed.pods):
        return Verdict(
            PHASES[reached.stage],
            Reason.SUSPENDING,
            "waiting for the pod to save a checkpoint and end",
            is_progressing=False,
        )
    return Verdict(Phase.SUSPENDED, Reason.SUSPENDED, "set spec.suspend to false to go on", is_progressing=False)


def _conflict(observed: Observed, reached: Milestones, now: datetime) -> Verdict | None:
    if not observed.conflicts:
        return None
    return _waiting(Reason.NAME_CONFLICT, f"{', '.join(observed.conflicts)} exists and is not this job's")


def _named_jobs(observed: Observed, reached: Milestones, now: datetime) -> Verdict | None:
    """Until the run is frozen: what the jobs that the spec names have to say."""
    if observed.spec is None or observed.run is not None:
        return None
    names = observed.spec.named_jobs
    hopeless = (verdict for name in names if (verdict := _hopeless(observed, name)) is not None)
    waiting = (name for name in names if name not in observed.named_jobs or not observed.named_jobs[name].is_complete)
    if (verdict := next(hopeless, None)) is not None:
        return verdict
    if (name := next(waiting, None)) is not None:
        absent = "" if name in observed.named_jobs else ", which does not exist yet"
        return _waiting(Reason.WAITING_FOR_JOB, f"waiting for the FineTuneJob {name}{absent}")
    return None


def _hopeless(observed: Observed, name: str) -> Verdict | None:
    """Why what job `name` publishes will never be there, or be of no use."""
    if observed.metadata.name in _reached_from(observed, name):
        way = "names this job" if name == observed.metadata.name else f"the FineTuneJob {name} waits for this job"
        return _failed(Reason.BAD_SPEC, f"job://{name}: {way}: jobs that wait for each other never begin")
    job = observed.named_jobs.get(name)
    if job is None or not (job.failure or job.is_complete):
        return None
    if job.failure:
        return _failed(Reason.DEPENDENCY_FAILED, f"the FineTuneJob {name} failed: {job.failure}")
    if job.artifact is None or job.artifact.kind != "adapter" or not job.artifact.uri:
        what = f"a {job.artifact.kind}" if job.artifact and job.artifact.kind else "nothing"
        return _failed(Reason.BAD_SPEC, f"job://{name}: that job published {what}, where an adapter is needed")
    return None


def _reached_from(observed: Observed, name: str) -> set[str]:
    """`name`, the jobs that it waits for, the jobs that they wait for, and so on."""
    reached, left = set(), [name]
    while left:
        one = left.pop()
        reached.add(one)
        job = observed.named_jobs.get(one)
        left += [other for other in (job.waits_for if job else ()) if other not in reached]
    return reached


def _refused(observed: Observed, reached: Milestones, now: datetime) -> Verdict | None:
    return _waiting(*observed.refusal) if observed.refusal else None


def _starting(observed: Observed, reached: Milestones, now: datetime) -> Verdict | None:
    """The stage's Kubernetes Job is to be made, or has no pod yet."""
    job = observed.jobs.get(reached.stage)
    if job is None or job.is_deleting:
        left = [pod.name for pod in observed.pods if not pod.is_over]
        return _going_on(reached.stage, f"waiting for {left[0]} to end" if left else "")
    if job.is_suspended:
        queue = observed.spec and kueue_labels(observed.metadata, observed.spec).get(labels.KUEUE_QUEUE_LABEL)
        return Verdict(
            Phase.QUEUED,
            Reason.QUEUED,
            f"waiting to be admitted by queue {queue}" if queue else "",
            is_progressing=False,
        )
    if not observed.tries(reached.stage):
        hindrance = unmade(job)
        return _waiting(hindrance.reason, hindrance.message) if hindrance else _going_on(reached.stage)
    return None


def _pod(observed: Observed, reached: Milestones, now: datetime) -> Verdict:
    """The stage's Kubernetes Job is at work: its newest pod tells how."""
    stage, pod = reached.stage, observed.tries(reached.stage)[-1]
    if (end := ending(pod)) is not None:
        return _between_tries(stage, end, observed)
    if pod.disruption:
        return Verdict(
            PHASES[stage], Reason.PREEMPTED, with_next_step(Reason.PREEMPTED, pod.disruption), is_progressing=False
        )
    if (hindrance := obstacle(pod, now)) is not None:
        return _waiting(hindrance.reason, hindrance.message)
    if not pod.is_running:
        return _going_on(stage)
    if observed.health is not None:
        message = with_next_step(observed.health.reason, observed.health.message)
        return Verdict(PHASES[stage], observed.health.reason, message, is_progressing=False)
    return Verdict(PHASES[stage], RUNNING[stage])


RULES: tuple[Rule, ...] = (
    _bad_spec,
    _published,
    _job_failed,
    _deadline,
    _suspension,
    _conflict,
    _named_jobs,
    _refused,
    _starting,
    _pod,
)
RUNNING: dict[StageName, Reason] = {"prepare": Reason.PREPARING, "train": Reason.TRAINING, "publish": Reason.PUBLISHING}


def last_ending(observed: Observed, stage: StageName) -> Ending | None:
    """How the stage's newest ended pod ended."""
    endings = [end for pod in observed.tries(stage) if (end := ending(pod)) is not None]
    return endings[-1] if endings else None


def _between_tries(stage: StageName, end: Ending, observed: Observed) -> Verdict:
    """The last pod ended, and the Kubernetes Job has not said yet what follows."""
    if end.reason is Reason.SUCCEEDED:
        return Verdict(PHASES[stage], RUNNING[stage])
    reason = Reason.RETRYING if end.reason is Reason.INTERNAL_ERROR else end.reason
    return Verdict(PHASES[stage], reason, with_next_step(reason, end.message), is_progressing=False)


def _going_on(stage: StageName, message: str = "") -> Verdict:
    """On the way to a running pod. Only `train` tells starting from running: its start may take long."""
    return Verdict(PHASES[stage], Reason.STARTING if stage == "train" else RUNNING[stage], message)


def _waiting(reason: Reason, message: str) -> Verdict:
    return Verdict(Phase.WAITING, reason, with_next_step(reason, message), is_progressing=False)


def _failed(reason: Reason, message: str) -> Verdict:
    return Verdict(Phase.FAILED, reason, with_next_step(reason, message), is_progressing=False)


def _seconds_left(observed: Observed, now: datetime) -> float | None:
    """Until the deadline; None without one. Ended attempts count by the status, so that a resume resets nothing."""
    if observed.spec is None or observed.spec.deadline_seconds is None:
        return None
    listed = {attempt.pod for attempt in observed.status.attempts if attempt.finished_at}
    past = sum(seconds_between(one.started_at, one.finished_at) for one in observed.status.attempts)
    present = sum(_active_seconds(pod, now) for pod in observed.pods if pod.name not in listed)
    return observed.spec.deadline_seconds - past - present


def _active_seconds(pod: Pod, now: datetime) -> float:
    if pod.termination is not None:
        return seconds_between(pod.termination.started_at, pod.termination.finished_at)
    return seconds_between(pod.running_since, timestamp(now)) if pod.running_since else 0


def _deletions(observed: Observed, reached: Milestones, verdict: Verdict) -> tuple[StageJob, ...]:
    """Kubernetes Jobs that must not go on."""
    job = observed.jobs.get(reached.stage)
    if job is None or job.is_deleting:
        return ()
    is_lost = verdict.reason is Reason.RETRYING and reached.stage == "publish" and job.is_complete
    if is_lost or ((verdict.phase == Phase.FAILED or _is_held(verdict)) and not job.is_finished):
        return (job,)
    return ()


def _is_held(verdict: Verdict) -> bool:
    """Whether the job is suspended, or on its way there: the phase is Suspended only once no pod is left."""
    return verdict.reason in (Reason.SUSPENDING, Reason.SUSPENDED)


def _creations(observed: Observed, reached: Milestones, verdict: Verdict, settings: Settings) -> tuple[Object, ...]:
    """The children that the stage lacks; never a Job beside a pod that is still alive."""
    is_over = verdict.phase in (Phase.SUCCEEDED, Phase.FAILED)
    is_held = _is_held(verdict) or verdict.reason is Reason.WAITING_FOR_JOB
    if is_over or is_held or observed.conflicts or observed.spec is None:
        return ()
    if reached.stage in observed.jobs or any(not pod.is_over for pod in observed.pods):
        return ()
    run = observed.run or objects.frozen_run(observed.metadata, observed.spec, settings, _artifacts(observed))
    children = [] if observed.run else [objects.run_config_map(run)]
    if not observed.has_workspace:
        children.append(objects.workspace_claim(run))
    return (*children, objects.stage_job(observed.metadata, observed.spec, run, reached.stage, settings))


def _artifacts(observed: Observed) -> dict[str, str]:
    """Where the jobs that the spec names have published."""
    found = ((job.name, job.artifact.uri) for job in observed.named_jobs.values() if job.artifact is not None)
    return {name: uri for name, uri in found if uri is not None}


def _requeue_after(observed: Observed, verdict: Verdict, now: datetime) -> float | None:
    """When time alone will change the verdict."""
    if verdict.phase in (Phase.SUCCEEDED, Phase.FAILED):
        ttl = observed.spec.ttl_seconds_after_finished if observed.spec else None
        return float(ttl) if ttl is not None else None
    waits = [grace for pod in observed.pods if (grace := seconds_of_grace(pod, now)) > 0]
    if observed.conflicts or observed.refusal:
        waits.append(CONFLICT_SECONDS)
    left = _seconds_left(observed, now)
    if left is not None and any(pod.is_running for pod in observed.pods):
        waits.append(max(0.0, left))
    # The grace is counted in whole seconds of the scheduler's clock: a little later is surely over.
    return min(waits) + 0.1 if waits else None


def _events(old: api.FineTuneJobStatus, new: api.FineTuneJobStatus) -> tuple[Event, ...]:
    """One Event for each step that people want to see in `kubectl describe`."""
    events = []
    if is_true(new, ConditionType.PREPARED) and not is_true(old, ConditionType.PREPARED):
        events.append(Event("Normal", Reason.PREPARED, condition(new, ConditionType.PREPARED).message))
    before = condition(old, ConditionType.PROGRESSING).reason
    after = condition(new, ConditionType.PROGRESSING)
    if after.reason != before:
        reason = Reason(after.reason)
        if before == Reason.SUSPENDED:
            events.append(Event("Normal", Reason.RESUMED, "the run goes on from its last checkpoint"))
        if reason not in UNTOLD:
            events.append(Event(TOLD.get(reason, "Warning"), reason, _event_message(new, after)))
    return tuple(events)


def _event_message(status: api.FineTuneJobStatus, progressing: api.Condition) -> str:
    if progressing.reason == Reason.TRAINING:
        return (
            f"attempt {status.attempts[-1].number} runs in pod {status.attempts[-1].pod}"
            if status.attempts
            else "training"
        )
    return progressing.message
