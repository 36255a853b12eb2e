"""What is to be done about a job: from what is observed and the time, children to make and to delete, a status, events.

A pure function. It may be called any number of times, from any state: what is done already is not planned again.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from finetune_api import status as api
from finetune_api.exits import ExitCode
from finetune_api.reasons import NEXT_STEP, ConditionType, Phase, Reason
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.stages import STAGES
from finetune_operator import manifests
from finetune_operator.assessment import assess
from finetune_operator.attempts import FREE, history
from finetune_operator.diagnosis import ending, seconds_of_grace
from finetune_operator.observed_state import Observed, Pod, StageJob, moment
from finetune_operator.settings import Settings
from finetune_operator.situation import (
    Situation,
    is_under_way,
    pinned_run,
    queue_of,
    seconds_held,
    seconds_left,
)
from finetune_operator.status import (
    BARRED,
    Assessment,
    brought_back,
    condition,
    dependencies,
    has_restarts_left,
    is_complete,
    is_edited_after_its_end,
    is_final,
    is_true,
    milestones,
    settled_progress,
    summarise,
    unreadable,
    with_kstatus,
)

Object = dict[str, Any]
SOON_SECONDS = 0.05
"""After a deletion: what takes its place is made once it is seen to be gone."""
UNSEEN_SECONDS = 2
"""After the deletion of a Kubernetes Job that is known by its pods alone, and may be gone already."""
IDLE_SECONDS = 10
"""A Kubernetes Job that has had no pod for so long waits for its own back-off, which grows to ten minutes."""
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


WorkspaceFate = Literal["delete", "let go"]
"""What becomes of the workspace of a job that has ended: it is deleted, or it outlives the job."""


@dataclass(frozen=True)
class Plan:
    """What to do, in this order: create or delete (never both), the workspace, status, progress, events; the status
    before all if `status_first`."""

    delete: tuple[StageJob, ...] = ()
    create: tuple[Object, ...] = ()
    status: api.FineTuneJobStatus | None = None
    """None: leave it."""
    status_first: bool = False
    """What is deleted or created rests on facts that are in no object yet: they are written before it happens."""
    progress: api.Progress | None = None
    """What `status.progress` should say; None: nothing."""
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    """Seconds; None: not before something changes."""
    workspace: WorkspaceFate | None = None
    """None: leave it."""
    expire: bool = False
    """Delete the FineTuneJob itself: its time after the end is over."""


def plan(observed: Observed, settings: Settings, now: datetime) -> Plan:
    """Decide."""
    if observed.metadata.deletion_timestamp:
        return Plan(progress=observed.status.progress)
    if is_final(observed.status):
        return _after_the_end(observed, now)
    if observed.spec is None:
        return _unreadable(observed, now)
    reached = milestones(observed)
    past = history(observed, reached.stage, now)
    seen = Situation(observed, observed.spec, reached, past, settings, now)
    assessment = assess(seen)
    if assessment.is_over:
        past = history(observed, reached.stage, now, assessment.reason)
        assessment = _with_fate(seen, assessment)
    deletions = _deletions(seen, assessment)
    if not assessment.is_over and seen.job is not None and seen.job in deletions:
        past = replace(past, stage=_with_another_job(seen))
    creations, run = ((), None) if deletions else _creations(seen, assessment)
    run = run or pinned_run(observed)
    status = summarise(observed, reached, past, assessment, run, now)
    return Plan(
        delete=deletions,
        create=creations,
        status=status,
        status_first=not assessment.is_over and bool(deletions or creations) and _is_news(observed, status),
        progress=settled_progress(observed, assessment, now),
        events=_events(observed, status),
        requeue_after=_requeue_after(seen, assessment, deletions, status),
        workspace=_fate(seen, assessment),
    )


def _with_another_job(seen: Situation) -> api.StageStatus:
    """The stage, with another Kubernetes Job; who asks for a restart gives it all its tries."""
    stage = seen.past.stage
    tries = 0 if has_restarts_left(seen.spec, seen.observed.status) else stage.tries
    return stage.model_copy(update={"number": stage.number + 1, "tries": tries})


def _is_news(observed: Observed, new: api.FineTuneJobStatus) -> bool:
    """Whether the new status holds a fact that would be lost: in no other object can it be looked up again."""
    old = observed.stored or observed.status
    return any(
        getattr(old, name) != getattr(new, name) for name in ("run", "stage", "dependencies", "limits", "attempts")
    )


def _fate(seen: Situation, assessment: Assessment) -> WorkspaceFate | None:
    """A record must not hold a disk; a failure must not lose one."""
    claim, success = seen.observed.workspace, assessment.phase == Phase.SUCCEEDED
    if claim is None or not assessment.is_over or seen.observed.kept_workspace:
        return None
    if seen.spec.resources.workspace.is_deleted_after(success):
        return "delete"
    return "let go" if claim.is_owned and not success else None


def _with_fate(seen: Situation, assessment: Assessment) -> Assessment:
    """A job that has ended says what became of its workspace, wherever that is not what everybody expects."""
    claim, success = seen.observed.workspace, assessment.phase is Phase.SUCCEEDED
    if claim is None:
        return assessment
    is_deleted, message = seen.spec.resources.workspace.is_deleted_after(success), assessment.message
    outlives = f"The workspace outlives the job: `kubectl delete pvc {claim.name}` when it is no longer needed."
    if seen.observed.kept_workspace:
        told = f"{seen.observed.kept_workspace}. Do it by hand when the job is no longer needed."
    elif is_deleted and not success:
        message = message.removesuffix(NEXT_STEP.get(assessment.reason, ""))
        told = (
            "The workspace goes with the failure, as reclaim.onFailure says: to try again, apply it under a new name."
        )
    elif not is_deleted and not (success and claim.is_owned):
        told = outlives
    else:
        return assessment
    return replace(assessment, message=f"{message.strip()} {told}")


def _after_the_end(observed: Observed, now: datetime) -> Plan:
    """Nothing but to delete the job in time, if that is asked for, and to say that an edit was seen."""
    status = with_kstatus(observed.status)
    fate: WorkspaceFate | None = None
    if is_edited_after_its_end(observed.metadata, observed.status):
        status = _with_edit(replace(observed, status=status or observed.status))
        claim, success = observed.workspace, is_true(observed.status, ConditionType.COMPLETE)
        is_given_up = observed.spec is not None and observed.spec.resources.workspace.is_deleted_after(success)
        fate = "delete" if claim is not None and is_given_up else None
    rest = Plan(status=status, progress=observed.status.progress, workspace=fate)
    ttl = observed.spec.ttl_seconds_after_finished if observed.spec else None
    if ttl is None or observed.status.finished_at is None:
        return rest
    left = ttl - (now - moment(observed.status.finished_at)).total_seconds()
    return replace(rest, requeue_after=left) if left > 0 else replace(rest, expire=True)


def _with_edit(observed: Observed) -> api.FineTuneJobStatus:
    """The status of an ended job that was edited: seen, and where restarts was lowered, it is raised from there."""
    limits, asked = observed.status.limits, (observed.spec.restarts or 0) if observed.spec else None
    if limits is not None and asked is not None and asked < limits.restarts:
        limits = limits.model_copy(update={"restarts": asked})
    seen = {"observed_generation": observed.metadata.generation, "limits": limits, "progress": None}
    return observed.status.model_copy(update=seen)


def _unreadable(observed: Observed, now: datetime) -> Plan:
    """Say so, and look again: another release of the operator, or an edit, may mend it."""
    status = unreadable(observed, now)
    return Plan(
        status=status,
        progress=observed.status.progress,
        events=_events(observed, status),
        requeue_after=_backed_off(condition(status, ConditionType.PROGRESSING).last_transition_time, now, 5, 60),
    )


def _deletions(seen: Situation, assessment: Assessment) -> tuple[StageJob, ...]:
    """Kubernetes Jobs that must not go on, each once."""
    observed, job = seen.observed, seen.job
    found = []
    if job is not None and not job.is_deleting:
        is_stopped = (assessment.phase == Phase.FAILED or seen.spec.suspend) and not job.is_finished
        if is_stopped or (not assessment.is_over and not seen.spec.suspend and _is_replaced(seen, job, assessment)):
            found.append(job)
    if observed.replaced is not None and not observed.replaced.is_deleting:
        found.append(observed.replaced)
    known = {one.uid: one for one in (*observed.jobs.values(), *found)}
    for pod in observed.pods:
        if (pod.job or pod.owner in known) and pod.owner not in {one.uid for one in found} and _is_in_excess(pod, seen):
            found.append(known.get(pod.owner) or StageJob(observed.metadata.namespace, pod.job, pod.owner, pod.stage))
    return tuple(found)


def _is_in_excess(pod: Pod, seen: Situation) -> bool:
    """Whether the Kubernetes Job of the pod would go on although the trainer's part is done: the pod has outlived its
    trainer, or ended as failed by another container's fault, or is one of a stage that is done already."""
    job = next((one for one in seen.observed.jobs.values() if one.uid == pod.owner), None)
    has_ended = job.is_finished or job.is_deleting if job is not None else bool(pod.gone_at)
    if pod.is_over:
        is_done = pod.termination is not None and pod.termination.exit_code == ExitCode.DONE
        return is_done and not has_ended and pod.phase != "Succeeded"
    if pod.is_deleting:
        return False
    if pod.termination is not None:
        return not seconds_held(pod, seen)
    # Pods are read before Jobs: one that seems to run may be what has completed its Job.
    return not has_ended and pod.stage in STAGES and STAGES.index(pod.stage) < STAGES.index(seen.stage)


def _is_replaced(seen: Situation, job: StageJob, assessment: Assessment) -> bool:
    """Whether the stage goes on with another Kubernetes Job.

    The Job's own back-off counts failures that it ignores (kubernetes/kubernetes#130881): after a few evictions it
    waits for minutes. A queue admits a Job, not a stage: there another one would lose its place.
    """
    if assessment.reason in BARRED or seen.observed.refusal is not None:
        return False
    if is_complete(seen.observed, seen.stage):
        return assessment.reason is Reason.RETRYING  # its report is lost
    if has_restarts_left(seen.spec, seen.observed.status):
        return True
    pod, has_drifted = seen.newest, bool(job.inputs) and job.inputs != manifests.inputs(seen.spec)
    if pod is None or not (pod.has_started or pod.is_over):
        return has_drifted or bool(job.failure) or (pod is None and _is_idle(seen, job))
    if not pod.is_over:
        return False
    end = ending(pod)
    is_ignored = bool(pod.disruption or pod.is_deleting or pod.gone_at) or (end is not None and end.reason in FREE)
    return bool(job.failure) or has_drifted or (is_ignored and not job.is_suspended and not queue_of(seen))


def _is_idle(seen: Situation, job: StageJob) -> bool:
    """Whether it has begun, has no pod, and nothing but its back-off keeps it from one."""
    if job.is_suspended or job.complaints or not job.started_at or queue_of(seen):
        return False
    return (seen.now - moment(job.started_at)).total_seconds() > IDLE_SECONDS


def _creations(seen: Situation, assessment: Assessment) -> tuple[tuple[Object, ...], api.PinnedRun | None]:
    """The children that the stage lacks, and the run that is pinned with them; never a Job beside a living pod."""
    observed, job = seen.observed, seen.job
    if assessment.is_over or seen.spec.suspend or assessment.reason in BARRED:
        return (), None
    if job is not None or observed.replaced is not None or observed.living:
        return (), None
    pin, children = pinned_run(observed), []
    if pin is None or (observed.run is None and not is_under_way(observed)):
        config_map, pin = seen.to_freeze
        children += [] if observed.run else [config_map]
    owner, spec = observed.metadata, _with_artifacts(seen)
    if not observed.has_workspace:
        children.append(manifests.workspace_claim(owner, spec))
    stage = seen.past.stage
    return (*children, manifests.stage_job(owner, spec, seen.stage, stage, pin, seen.settings)), pin


def _artifacts(seen: Situation) -> dict[str, str]:
    """Where the jobs that the spec names have published."""
    found = {one.name: one.uri for one in dependencies(seen.observed)}
    if seen.observed.run is not None and not found:
        pairs = zip(seen.spec.method.options.adapters, seen.observed.run.adapters, strict=False)
        found = {one.uri.removeprefix("job://"): uri for one, uri in pairs if one.uri.startswith("job://")}
    return found


def _with_artifacts(seen: Situation) -> FineTuneJobSpec:
    return seen.spec.resolved().with_artifacts(_artifacts(seen))


def _requeue_after(
    seen: Situation, assessment: Assessment, deletions: tuple[StageJob, ...], status: api.FineTuneJobStatus
) -> float | None:
    """When time alone will change the assessment, or when to look at what nobody tells."""
    observed, now = seen.observed, seen.now
    if assessment.is_over and brought_back(seen.spec, status) is not None:
        return SOON_SECONDS
    if deletions and not assessment.is_over and not observed.kept_job:
        known = {one.uid for one in (*observed.jobs.values(), observed.replaced) if one is not None}
        return SOON_SECONDS if all(one.uid in known for one in deletions) else UNSEEN_SECONDS
    if assessment.is_over:
        ttl = seen.spec.ttl_seconds_after_finished
        return float(ttl) if ttl is not None else None
    waits = [grace for pod in observed.pods if (grace := seconds_of_grace(pod, now)) > 0]
    waits += [left for pod in observed.living if (left := seconds_held(pod, seen)) > 0]
    waits += [_backed_off(pod.due, now, 5, 60) for pod in observed.living if pod.due]
    since = condition(observed.status, ConditionType.PROGRESSING).last_transition_time
    is_hindered = bool(observed.conflicts or observed.refusal or observed.kept_job)
    if is_hindered or assessment.reason in (Reason.RUN_CHANGED, Reason.WORKSPACE_LOST):
        waits.append(_backed_off(since, now, 5, 60))
    elif (found := _unheard(seen)) is not None:
        waits.append(
            _backed_off(found.created_at, now, 2 if found.is_scheduled else 20, 30 if found.is_scheduled else 300)
        )
    elif seen.job is not None and (seen.newest is None or seen.newest.is_over) and not seen.job.is_suspended:
        waits.append(_backed_off(seen.newest.ended_at if seen.newest else seen.job.started_at, now, 5, 60))
    remaining = seconds_left(seen)
    if remaining is not None and remaining > 0 and any(pod.is_running for pod in observed.pods):
        waits.append(remaining)
    # The grace is counted in whole seconds of the scheduler's clock: a little later is surely over.
    return min(waits) + 0.1 if waits else None


def _unheard(seen: Situation) -> Pod | None:
    """The newest pod, while it does not start and no status tells why."""
    pod = seen.newest
    return pod if pod is not None and not (pod.is_over or pod.has_started or pod.refused_since) else None


def _backed_off(since: str, now: datetime, shortest: float, longest: float) -> float:
    """Seconds to the next look at what nobody tells: the longer it lasts, the more."""
    age = (now - moment(since)).total_seconds() if since else 0
    return min(longest, max(shortest, age / 4, -age))


def _events(observed: Observed, new: api.FineTuneJobStatus) -> tuple[Event, ...]:
    """One Event for each step that people want to see in `kubectl describe`."""
    old = observed.status
    events = []
    if is_true(new, ConditionType.PREPARED) and not is_true(old, ConditionType.PREPARED):
        events.append(Event("Normal", Reason.PREPARED, condition(new, ConditionType.PREPARED).message))
    before = condition(old, ConditionType.PROGRESSING).reason
    after = condition(new, ConditionType.PROGRESSING)
    if after.reason != before:
        reason = Reason(after.reason)
        if before == Reason.SUSPENDED or observed.stored is not None:
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
