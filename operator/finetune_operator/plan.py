"""What is to be done about a job: from what is observed and the time, children to make and to delete, a status, events.

A pure function. It may be called any number of times, from any state: what is done already is not planned again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from finetune_api import labels
from finetune_api import status as api
from finetune_api.exits import PERMANENT, ExitCode
from finetune_api.reasons import NEXT_STEP, ConditionType, Phase, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_operator import objects
from finetune_operator.attempts import FREE, History, history, last_known
from finetune_operator.diagnosis import (
    Ending,
    ending,
    obstacle,
    seconds_of_grace,
    stuck_in_deletion,
    unmade,
)
from finetune_operator.facts import (
    STAGES,
    Observed,
    Pod,
    StageJob,
    StageName,
    digest,
    moment,
    seconds_between,
    timestamp,
)
from finetune_operator.pods import kueue_labels
from finetune_operator.settings import Settings
from finetune_operator.status import (
    BARRED,
    PHASES,
    Milestones,
    Verdict,
    brought_back,
    condition,
    dependencies,
    has_restarts_left,
    is_complete,
    is_edited_after_its_end,
    is_finished,
    is_raised,
    is_true,
    milestones,
    settled_progress,
    summarise,
    unreadable,
    with_kstatus,
    with_next_step,
)

Object = dict[str, Any]

UNMADE_SECONDS = 8
"""After a creation: nobody tells when a Kubernetes Job cannot make its pod."""
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
    """What to do, in this order: delete, create, status, progress, events; the status before all if `status_first`."""

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


@dataclass(frozen=True)
class Situation:
    """All that a verdict rests on."""

    observed: Observed
    spec: FineTuneJobSpec
    reached: Milestones
    past: History
    settings: Settings
    now: datetime

    @property
    def stage(self) -> StageName:
        return self.reached.stage

    @property
    def job(self) -> StageJob | None:
        """The Kubernetes Job of the present stage."""
        return self.observed.jobs.get(self.stage)

    @property
    def newest(self) -> Pod | None:
        """The newest pod of the present stage's Kubernetes Job."""
        tries = self.observed.tries(self.stage)
        return tries[-1] if tries else None


def plan(observed: Observed, settings: Settings, now: datetime) -> Plan:
    """Decide."""
    if observed.metadata.deletion_timestamp:
        return Plan(progress=observed.status.progress)
    if is_finished(observed.status):
        return _after_the_end(observed, now)
    if observed.spec is None:
        return _unreadable(observed, now)
    reached = milestones(observed)
    past = history(observed, reached.stage, now)
    seen = Situation(observed, observed.spec, reached, past, settings, now)
    verdict = judge(seen)
    if verdict.is_over:
        past = history(observed, reached.stage, now, verdict.reason)
        verdict = _with_fate(seen, verdict)
    deletions = _deletions(seen, verdict)
    if not verdict.is_over and seen.job is not None and seen.job in deletions:
        past = replace(past, stage=_with_another_job(seen))
    creations, run = ((), None) if deletions else _creations(seen, verdict)
    run = run or _pinned(observed)
    status = summarise(observed, reached, past, verdict, run, now)
    return Plan(
        delete=deletions,
        create=creations,
        status=status,
        status_first=not verdict.is_over and bool(deletions or creations) and _is_news(observed, status),
        progress=settled_progress(observed, verdict, now),
        events=_events(observed, status),
        requeue_after=_requeue_after(seen, verdict, deletions, bool(creations), status),
        workspace=_fate(seen, verdict),
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


def _fate(seen: Situation, verdict: Verdict) -> WorkspaceFate | None:
    """A record must not hold a disk; a failure must not lose one."""
    claim, success = seen.observed.workspace, verdict.phase == Phase.SUCCEEDED
    if claim is None or not verdict.is_over or seen.observed.kept_workspace:
        return None
    if seen.spec.resources.workspace.is_deleted_after(success):
        return "delete"
    return "let go" if claim.is_owned and not success else None


def _with_fate(seen: Situation, verdict: Verdict) -> Verdict:
    """A job that has ended says what became of its workspace, wherever that is not what everybody expects."""
    claim, success = seen.observed.workspace, verdict.phase is Phase.SUCCEEDED
    if claim is None:
        return verdict
    is_deleted, message = seen.spec.resources.workspace.is_deleted_after(success), verdict.message
    outlives = f"The workspace outlives the job: `kubectl delete pvc {claim.name}` when it is no longer needed."
    if seen.observed.kept_workspace:
        told = f"{seen.observed.kept_workspace}. Do it by hand when the job is no longer needed."
    elif is_deleted and not success:
        message = message.removesuffix(NEXT_STEP.get(verdict.reason, ""))
        told = (
            "The workspace goes with the failure, as reclaim.onFailure says: to try again, apply it under a new name."
        )
    elif not is_deleted and not (success and claim.is_owned):
        told = outlives
    else:
        return verdict
    return replace(verdict, message=f"{message.strip()} {told}")


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


def judge(seen: Situation) -> Verdict:
    """How the job stands: the first rule that has something to say."""
    verdicts = (rule(seen) for rule in RULES)
    return next(verdict for verdict in verdicts if verdict is not None)


Rule = Callable[[Situation], Verdict | None]


def _undeleted(seen: Situation) -> Verdict | None:
    """What must not go on does: no end is told while a pod may still hold what it holds."""
    return _waiting(*seen.observed.kept_job) if seen.observed.kept_job else None


def _bad_spec(seen: Situation) -> Verdict | None:
    refusal = seen.observed.refusal
    return _failed(*refusal) if refusal is not None and refusal[0] is Reason.BAD_SPEC else None


def _published(seen: Situation) -> Verdict | None:
    """Succeeded means: published, read back, and the digest is known."""
    observed, reached = seen.observed, seen.reached
    if not reached.is_trained or not is_complete(observed, "publish"):
        return None
    if reached.artifact is not None and reached.artifact.digest:
        if any(_seconds_held(pod, seen) > 0 for pod in observed.living):
            return None
        return Verdict(Phase.SUCCEEDED, Reason.SUCCEEDED, f"published at {reached.artifact.uri}", is_progressing=False)
    endings = (ending(pod) for pod in observed.tries("publish"))
    if any(end is not None and end.reason is Reason.SUCCEEDED for end in endings):
        return _failed(Reason.ARTIFACT_INVALID, f"publish ended without a digest of {seen.spec.output.uri}")
    # Its pod is gone, and its report with it: publish again, it only has to verify.
    message = with_next_step(Reason.RETRYING, "publish's report is lost")
    return Verdict(Phase.PUBLISHING, Reason.RETRYING, message, is_progressing=False)


def _exhausted(seen: Situation) -> Verdict | None:
    """No try is left, or none would help. What the Kubernetes Job counts is only its own share of the tries."""
    job, end = seen.job, last_ending(seen.observed, seen.stage)
    if job is None or is_complete(seen.observed, seen.stage):
        return None
    tries = seen.past.stage.tries
    is_spent = tries > seen.spec.retry.limit and end is not None and end.reason not in FREE
    is_unjudged = end is not None and end.reason not in FREE and _is_left_unjudged(seen.newest)
    if not (is_spent or is_unjudged or _has_failed_for_good(seen, job)):
        return None
    if not (job.failure or is_unjudged) and _fails_by_itself(seen, job):
        return None  # within a second: ended by us instead, it would take its pods and their logs along
    reason, message = (end.reason, end.message) if end else (Reason.RETRY_LIMIT_EXCEEDED, job.failure_message)
    if reason in (*FREE, Reason.RETRYING):
        reason = Reason.RETRY_LIMIT_EXCEEDED
    is_asked_for_more = is_raised(seen.spec, seen.observed.status, reason) and not is_spent
    if is_asked_for_more or has_restarts_left(seen.spec, seen.observed.status):
        return None  # before this end was seen
    if is_spent and tries > 1:
        message = f"{message} (after {tries} tries)"
    if seen.stage != "publish":
        return _failed(reason, message)
    own = (Reason.OUTPUT_NOT_WRITABLE, Reason.INTERNAL_ERROR, Reason.RETRY_LIMIT_EXCEEDED, Reason.ARTIFACT_PUSH_FAILED)
    if reason in own:
        return _failed(Reason.ARTIFACT_PUSH_FAILED, message)
    verdict = _failed(reason, message)
    if seen.spec.resources.workspace.is_deleted_after(False):
        return verdict
    return replace(verdict, message=f"{verdict.message} The trained weights are kept on the workspace.")


def _has_failed_for_good(seen: Situation, job: StageJob) -> bool:
    """A Job that has spent its own share of the tries is followed by another one: by the numbers in the status. Where
    those cannot be kept, because the definition is older, its word is the last."""
    return job.failure not in ("", "BackoffLimitExceeded") or (bool(job.failure) and not seen.observed.status.stage)


def _is_left_unjudged(pod: Pod | None) -> bool:
    """Whether the trainer failed for good and the Job controller, which looks at ended pods alone, does not see it."""
    code = pod.termination.exit_code if pod is not None and pod.termination is not None else 0
    return code in PERMANENT and pod is not None and bool(pod.others)


def _fails_by_itself(seen: Situation, job: StageJob) -> bool:
    """Whether the Job controller, too, counts more failures than it is to bear."""
    # The kubelet tells of the container's end first, and of the pod's a moment later.
    ended = [pod for pod in seen.observed.tries(seen.stage) if not (pod.gone_at or pod.disruption or pod.others)]
    codes = [pod.termination.exit_code for pod in ended if pod.termination is not None]
    failed = [code for code in codes if code not in (0, ExitCode.STOPPED, ExitCode.TERMINATED)]
    unstarted = [pod for pod in ended if pod.termination is None and pod.phase == "Failed"]
    return len(failed) + len(unstarted) > job.limit


def _deadline(seen: Situation) -> Verdict | None:
    left = _seconds_left(seen)
    if left is None or left > 0:
        return None
    return _failed(Reason.DEADLINE_EXCEEDED, f"the job was active for {seen.spec.deadline_seconds} seconds")


def _suspension(seen: Situation) -> Verdict | None:
    if not seen.spec.suspend:
        return None
    living = seen.observed.living
    if not living:
        return Verdict(Phase.SUSPENDED, Reason.SUSPENDED, "set spec.suspend to false to go on", is_progressing=False)
    if (lost := _lost_node(seen)) is not None:
        return lost
    message = f"waiting for the pod {living[0].name} to save a checkpoint and end"
    return Verdict(PHASES[seen.stage], Reason.SUSPENDING, message, is_progressing=False)


def _conflict(seen: Situation) -> Verdict | None:
    if not seen.observed.conflicts:
        return None
    return _waiting(Reason.NAME_CONFLICT, f"{', '.join(seen.observed.conflicts)} exists and is not this job's")


def _named_jobs(seen: Situation) -> Verdict | None:
    """Until the run is frozen: what the jobs that the spec names have to say. What one has published is pinned."""
    observed = seen.observed
    if _pinned(observed) is not None:
        return None
    pinned = {one.name for one in observed.status.dependencies}
    names = [name for name in seen.spec.named_jobs if name not in pinned]
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
    if job.adapter is None:
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


def _run_changed(seen: Situation) -> Verdict | None:
    """The run file is not the one that was frozen, or is lost: whatever it says now, nobody here has written it."""
    observed = seen.observed
    name = objects.run_name(observed.metadata)
    pin = _pinned(observed)
    if pin is None:
        if observed.run is None or observed.run.digest == _frozen(seen)[1].digest:
            return None
        problem = f"the ConfigMap {name} was there before the job began, and is not its run: delete it"
    elif observed.run is None:
        if not _is_under_way(observed):
            return None
        problem = f"the ConfigMap {name}, which holds the frozen run, is gone"
    elif observed.run.digest != pin.digest:
        problem = f"the ConfigMap {name} is not the run that was frozen: its digest is {observed.run.digest}"
    else:
        return None
    phase = PHASES[seen.stage] if observed.living else Phase.WAITING
    return replace(_waiting(Reason.RUN_CHANGED, problem), phase=phase)


def _workspace_lost(seen: Situation) -> Verdict | None:
    if seen.observed.has_workspace or not seen.reached.is_prepared:
        return None
    lost = f"the claim {objects.workspace_name(seen.observed.metadata)}, with the prepared data and the checkpoints,"
    if seen.observed.stored is not None:
        return _failed(Reason.WORKSPACE_LOST, f"{lost} went with the failure: there is nothing to go on from")
    return _waiting(Reason.WORKSPACE_LOST, f"{lost} is gone")


def _refused(seen: Situation) -> Verdict | None:
    return _waiting(*seen.observed.refusal) if seen.observed.refusal else None


def _held_open(seen: Situation) -> Verdict | None:
    """The trainer has ended, and another container keeps its pod, and what that holds, alive."""
    for pod in seen.observed.living:
        if pod.termination is not None and pod.others and not pod.is_deleting:
            message = (
                f"the trainer in pod {pod.name} has ended with exit code {pod.termination.exit_code}, and container "
                f"{', '.join(pod.others)} keeps the pod alive: "
            )
            after = f"it is ended {seen.settings.container_grace:.0f} s after"
            message += after if pod.job else f"no Job owns it any more: `kubectl delete pod {pod.name}`"
            phase, reason = PHASES.get(pod.stage, PHASES[seen.stage]), Reason.CONTAINER_LEFT_RUNNING
            message = with_next_step(reason, message) if pod.job else message
            return Verdict(phase, reason, message, is_progressing=False)
    return None


def _lost_node(seen: Situation) -> Verdict | None:
    """A pod that must be gone before anything else may use its workspace, on a node that does not answer."""
    stuck = (found for pod in seen.observed.living if (found := stuck_in_deletion(pod, seen.now)) is not None)
    if (found := next(stuck, None)) is None:
        return None
    message = with_next_step(found.reason, found.message)
    return Verdict(PHASES[seen.stage], found.reason, message, is_progressing=False)


def _starting(seen: Situation) -> Verdict | None:
    """The stage's Kubernetes Job is to be made, or has no pod yet, or no other one."""
    job, newest = seen.job, seen.newest
    if job is None or job.is_deleting or job.is_gone:
        left = [pod.name for pod in seen.observed.living]
        return _going_on(seen.stage, f"waiting for {left[0]} to end" if left else "")
    if job.is_suspended:
        queue = _queue(seen)
        message = f"waiting to be admitted by queue {queue}" if queue else f"the Kubernetes Job {job.name} is suspended"
        return Verdict(Phase.QUEUED, Reason.QUEUED, message, is_progressing=False)
    if newest is None or newest.is_over:
        hindrance = unmade(job, newest.ended_at if newest else "")
        if hindrance is not None:
            return _waiting(hindrance.reason, hindrance.message)
    return None if newest else _going_on(seen.stage)


def _pod(seen: Situation) -> Verdict:
    """The stage's Kubernetes Job is at work: its newest pod tells how."""
    stage, pod, health = seen.stage, seen.newest, seen.observed.health
    assert pod is not None
    if (end := ending(pod)) is not None:
        return _between_tries(stage, end)
    if pod.disruption:
        message = with_next_step(Reason.PREEMPTED, pod.disruption)
        return Verdict(PHASES[stage], Reason.PREEMPTED, message, is_progressing=False)
    if (hindrance := obstacle(pod, seen.now)) is not None:
        return _waiting(hindrance.reason, hindrance.message)
    if not pod.is_running:
        return _going_on(stage)
    if health is not None:
        message = with_next_step(health.reason, health.message)
        return Verdict(PHASES[stage], health.reason, message, is_progressing=False)
    return Verdict(PHASES[stage], RUNNING[stage])


RULES: tuple[Rule, ...] = (
    # Ends first: what has ended is not made to wait by anything below, but for a pod that nobody may end.
    _undeleted,
    _bad_spec,
    _published,
    _exhausted,
    _deadline,
    # Then what a person asked for, before any complaint about a job that is to stand still.
    _suspension,
    # Then what forbids to make anything, the surest first.
    _conflict,
    _named_jobs,
    _run_changed,
    _workspace_lost,
    _refused,
    # Then what keeps the next pod from the workspace; only then how the present one does.
    _held_open,
    _lost_node,
    _starting,
    _pod,
)
RUNNING: dict[StageName, Reason] = {"prepare": Reason.PREPARING, "train": Reason.TRAINING, "publish": Reason.PUBLISHING}


def last_ending(observed: Observed, stage: StageName) -> Ending | None:
    """How the stage's newest pod ended; None while it has not."""
    tries = observed.tries(stage)
    return ending(tries[-1]) if tries else None


def _between_tries(stage: StageName, end: Ending) -> Verdict:
    """The last pod ended, and what follows is on its way."""
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


def _seconds_left(seen: Situation) -> float | None:
    """Until the deadline; None without one. Ended attempts count by the status, so that a resume resets nothing."""
    if seen.spec.deadline_seconds is None:
        return None
    past = seen.past.usage.stage_seconds if seen.past.usage else 0
    present = sum(
        seconds_between(pod.running_since, last_known(pod, seen.observed, seen.now))
        for pod in seen.observed.pods
        if pod.is_running
    )
    return seen.spec.deadline_seconds - past - present


def _seconds_held(pod: Pod, seen: Situation) -> float:
    """Seconds until a pod that outlives its trainer is ended; 0 for every other one."""
    if pod.termination is None or pod.is_over or pod.is_deleting:
        return 0
    ended = pod.termination.finished_at or timestamp(seen.now)
    return max(0.0, seen.settings.container_grace - (seen.now - moment(ended)).total_seconds())


def _deletions(seen: Situation, verdict: Verdict) -> tuple[StageJob, ...]:
    """Kubernetes Jobs that must not go on, each once."""
    observed, job = seen.observed, seen.job
    found = []
    if job is not None and not job.is_deleting:
        is_stopped = (verdict.phase == Phase.FAILED or seen.spec.suspend) and not job.is_finished
        if is_stopped or (not verdict.is_over and not seen.spec.suspend and _is_replaced(seen, job, verdict)):
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
        return not _seconds_held(pod, seen)
    # Pods are read before Jobs: one that seems to run may be what has completed its Job.
    return not has_ended and pod.stage in STAGES and STAGES.index(pod.stage) < STAGES.index(seen.stage)


def _is_replaced(seen: Situation, job: StageJob, verdict: Verdict) -> bool:
    """Whether the stage goes on with another Kubernetes Job.

    The Job's own back-off counts failures that it ignores (kubernetes/kubernetes#130881): after a few evictions it
    waits for minutes. A queue admits a Job, not a stage: there another one would lose its place.
    """
    if verdict.reason in BARRED or seen.observed.refusal is not None:
        return False
    if is_complete(seen.observed, seen.stage):
        return verdict.reason is Reason.RETRYING  # its report is lost
    if has_restarts_left(seen.spec, seen.observed.status):
        return True
    pod, has_drifted = seen.newest, bool(job.inputs) and job.inputs != objects.inputs(seen.spec)
    if pod is None or not (pod.has_started or pod.is_over):
        return has_drifted or bool(job.failure) or (pod is None and _is_idle(seen, job))
    if not pod.is_over:
        return False
    end = ending(pod)
    is_ignored = bool(pod.disruption or pod.is_deleting or pod.gone_at) or (end is not None and end.reason in FREE)
    return bool(job.failure) or has_drifted or (is_ignored and not job.is_suspended and not _queue(seen))


def _queue(seen: Situation) -> str | None:
    """The queue that admits the stage's Kubernetes Job; None: it needs no admission."""
    if seen.job is not None and seen.job.queue:
        return seen.job.queue
    if seen.stage != "train":
        return None
    return kueue_labels(seen.observed.metadata, seen.spec).get(labels.KUEUE_QUEUE_LABEL)


def _is_idle(seen: Situation, job: StageJob) -> bool:
    """Whether it has begun, has no pod, and nothing but its back-off keeps it from one."""
    if job.is_suspended or job.complaints or not job.started_at or _queue(seen):
        return False
    return (seen.now - moment(job.started_at)).total_seconds() > IDLE_SECONDS


def _creations(seen: Situation, verdict: Verdict) -> tuple[tuple[Object, ...], api.PinnedRun | None]:
    """The children that the stage lacks, and the run that is pinned with them; never a Job beside a living pod."""
    observed, job = seen.observed, seen.job
    if verdict.is_over or seen.spec.suspend or verdict.reason in BARRED:
        return (), None
    if job is not None or observed.replaced is not None or observed.living:
        return (), None
    pin, children = _pinned(observed), []
    if pin is None or (observed.run is None and not _is_under_way(observed)):
        config_map, pin = _frozen(seen)
        children += [] if observed.run else [config_map]
    owner, spec = observed.metadata, _with_artifacts(seen)
    if not observed.has_workspace:
        children.append(objects.workspace_claim(owner, spec))
    stage = seen.past.stage
    return (*children, objects.stage_job(owner, spec, seen.stage, stage, pin, seen.settings)), pin


def _frozen(seen: Situation) -> tuple[Object, api.PinnedRun]:
    """The run file as it would be frozen now, and what is pinned of it."""
    run = objects.frozen_run(seen.observed.metadata, seen.spec, seen.settings, dependencies(seen.observed))
    config_map = objects.run_config_map(seen.observed.metadata, run)
    return config_map, api.PinnedRun(digest=digest(objects.run_text(config_map)), image=run.trainer_image)


def _pinned(observed: Observed) -> api.PinnedRun | None:
    """The run that stands in the status, or that an operator of before there were pins has begun; None: none has."""
    if observed.status.run is not None and observed.status.run.digest:
        return observed.status.run
    has_begun = bool(observed.jobs) or observed.status.phase in set(PHASES.values()) or _has_begun(observed)
    if observed.run is None or not has_begun:
        return None
    return api.PinnedRun(digest=observed.run.digest, image=observed.run.image)


def _has_begun(observed: Observed) -> bool:
    """Whether a pod of the job has run, by what nobody but the operator writes."""
    status = observed.status
    return bool(status.started_at or status.attempts or is_true(status, ConditionType.PREPARED))


def _is_under_way(observed: Observed) -> bool:
    """Whether anything was made of the frozen run: then its file was there before, as it is made first."""
    return bool(_has_begun(observed) or observed.jobs or observed.replaced or observed.pods or observed.workspace)


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
    seen: Situation, verdict: Verdict, deletions: tuple[StageJob, ...], creates: bool, status: api.FineTuneJobStatus
) -> float | None:
    """When time alone will change the verdict, or when to look at what nobody tells."""
    observed, now = seen.observed, seen.now
    if verdict.is_over and brought_back(seen.spec, status) is not None:
        return SOON_SECONDS
    if deletions and not verdict.is_over and not observed.kept_job:
        known = {one.uid for one in (*observed.jobs.values(), observed.replaced) if one is not None}
        return SOON_SECONDS if all(one.uid in known for one in deletions) else UNSEEN_SECONDS
    if verdict.is_over:
        ttl = seen.spec.ttl_seconds_after_finished
        return float(ttl) if ttl is not None else None
    waits = [grace for pod in observed.pods if (grace := seconds_of_grace(pod, now)) > 0]
    waits += [left for pod in observed.living if (left := _seconds_held(pod, seen)) > 0]
    waits += [_backed_off(pod.due, now, 5, 60) for pod in observed.living if pod.due]
    since = condition(observed.status, ConditionType.PROGRESSING).last_transition_time
    is_hindered = bool(observed.conflicts or observed.refusal or observed.kept_job)
    if is_hindered or verdict.reason in (Reason.RUN_CHANGED, Reason.WORKSPACE_LOST):
        waits.append(_backed_off(since, now, 5, 60))
    elif (found := _unheard(seen)) is not None:
        waits.append(
            _backed_off(found.created_at, now, 2 if found.is_scheduled else 20, 30 if found.is_scheduled else 300)
        )
    elif seen.job is not None and (seen.newest is None or seen.newest.is_over) and not seen.job.is_suspended:
        waits.append(_backed_off(seen.newest.ended_at if seen.newest else seen.job.started_at, now, 5, 60))
    if creates and not is_hindered:
        waits.append(UNMADE_SECONDS)
    remaining = _seconds_left(seen)
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
