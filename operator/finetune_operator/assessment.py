"""How a job stands: the rules, in the order in which they count.

It decides what is true of a job and what people are told. What is to be done about it is `plan`'s business.
"""

from collections.abc import Callable
from dataclasses import replace

from finetune_api.exits import PERMANENT, ExitCode
from finetune_api.reasons import Phase, Reason
from finetune_api.stages import PUBLISH, StageName
from finetune_operator import manifests
from finetune_operator.attempts import FREE
from finetune_operator.diagnosis import Ending, ending, obstacle, stuck_in_deletion, unmade
from finetune_operator.observed_state import Observed, Pod, StageJob
from finetune_operator.situation import (
    Situation,
    is_under_way,
    last_ending,
    pinned_run,
    queue_of,
    seconds_held,
    seconds_left,
)
from finetune_operator.stages import TRAITS
from finetune_operator.status import Assessment, has_restarts_left, is_complete, is_raised, with_next_step


def assess(seen: Situation) -> Assessment:
    """How the job stands: the first rule that has something to say."""
    assessments = (rule(seen) for rule in RULES)
    return next(assessment for assessment in assessments if assessment is not None)


Rule = Callable[[Situation], Assessment | None]


def _undeleted(seen: Situation) -> Assessment | None:
    """What must not go on does: no end is told while a pod may still hold what it holds."""
    return _waiting(*seen.observed.kept_job) if seen.observed.kept_job else None


def _bad_spec(seen: Situation) -> Assessment | None:
    refusal = seen.observed.refusal
    return _failed(*refusal) if refusal is not None and refusal[0] is Reason.BAD_SPEC else None


def _published(seen: Situation) -> Assessment | None:
    """Succeeded means: published, read back, and the digest is known."""
    observed, reached = seen.observed, seen.reached
    if not reached.is_trained or not is_complete(observed, PUBLISH):
        return None
    if reached.artifact is not None and reached.artifact.digest:
        if any(seconds_held(pod, seen) > 0 for pod in observed.living):
            return None
        return Assessment(
            Phase.SUCCEEDED, Reason.SUCCEEDED, f"published at {reached.artifact.uri}", is_progressing=False
        )
    endings = (ending(pod) for pod in observed.tries(PUBLISH))
    if any(end is not None and end.reason is Reason.SUCCEEDED for end in endings):
        return _failed(Reason.ARTIFACT_INVALID, f"publish ended without a digest of {seen.spec.output.uri}")
    if any(pod.stage == PUBLISH and not pod.is_deleting for pod in observed.living):
        return None  # it has ended since it was read, with its report
    # Its pod is gone, and its report with it: publish again, it only has to verify.
    message = with_next_step(Reason.RETRYING, "publish's report is lost")
    return Assessment(Phase.PUBLISHING, Reason.RETRYING, message, is_progressing=False)


def _exhausted(seen: Situation) -> Assessment | None:
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
    if seen.stage != PUBLISH:
        return _failed(reason, message)
    own = (Reason.OUTPUT_NOT_WRITABLE, Reason.INTERNAL_ERROR, Reason.RETRY_LIMIT_EXCEEDED, Reason.ARTIFACT_PUSH_FAILED)
    if reason in own:
        return _failed(Reason.ARTIFACT_PUSH_FAILED, message)
    assessment = _failed(reason, message)
    if seen.spec.resources.workspace.is_deleted_after(False):
        return assessment
    return replace(assessment, message=f"{assessment.message} The trained weights are kept on the workspace.")


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


def _deadline(seen: Situation) -> Assessment | None:
    left = seconds_left(seen)
    if left is None or left > 0:
        return None
    return _failed(Reason.DEADLINE_EXCEEDED, f"the job was active for {seen.spec.deadline_seconds} seconds")


def _suspension(seen: Situation) -> Assessment | None:
    if not seen.spec.suspend:
        return None
    living = seen.observed.living
    if not living:
        return Assessment(Phase.SUSPENDED, Reason.SUSPENDED, "set spec.suspend to false to go on", is_progressing=False)
    if (lost := _lost_node(seen)) is not None:
        return lost
    message = f"waiting for the pod {living[0].name} to save a checkpoint and end"
    return Assessment(TRAITS[seen.stage].phase, Reason.SUSPENDING, message, is_progressing=False)


def _conflict(seen: Situation) -> Assessment | None:
    if not seen.observed.conflicts:
        return None
    return _waiting(Reason.NAME_CONFLICT, f"{', '.join(seen.observed.conflicts)} exists and is not this job's")


def _named_jobs(seen: Situation) -> Assessment | None:
    """Until the run is frozen: what the jobs that the spec names have to say. What one has published is pinned."""
    observed = seen.observed
    if pinned_run(observed) is not None:
        return None
    pinned = {one.name for one in observed.status.dependencies}
    names = [name for name in seen.spec.named_jobs if name not in pinned]
    hopeless = (assessment for name in names if (assessment := _hopeless(observed, name)) is not None)
    waiting = (name for name in names if name not in observed.named_jobs or not observed.named_jobs[name].is_complete)
    if (assessment := next(hopeless, None)) is not None:
        return assessment
    if (name := next(waiting, None)) is not None:
        absent = "" if name in observed.named_jobs else ", which does not exist yet"
        return _waiting(Reason.WAITING_FOR_JOB, f"waiting for the FineTuneJob {name}{absent}")
    return None


def _hopeless(observed: Observed, name: str) -> Assessment | None:
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


def _run_changed(seen: Situation) -> Assessment | None:
    """The run file is not the one that was frozen, or is lost: whatever it says now, nobody here has written it."""
    observed = seen.observed
    name = manifests.run_name(observed.metadata)
    pin = pinned_run(observed)
    if pin is None:
        if observed.run is None or observed.run.digest == seen.to_freeze[1].digest:
            return None
        problem = f"the ConfigMap {name} was there before the job began, and is not its run: delete it"
    elif observed.run is None:
        if not is_under_way(observed):
            return None
        problem = f"the ConfigMap {name}, which holds the frozen run, is gone"
    elif observed.run.digest != pin.digest:
        problem = f"the ConfigMap {name} is not the run that was frozen: its digest is {observed.run.digest}"
    else:
        return None
    phase = TRAITS[seen.stage].phase if observed.living else Phase.WAITING
    return replace(_waiting(Reason.RUN_CHANGED, problem), phase=phase)


def _workspace_lost(seen: Situation) -> Assessment | None:
    if seen.observed.has_workspace or not seen.reached.is_prepared:
        return None
    lost = f"the claim {manifests.workspace_name(seen.observed.metadata)}, with the prepared data and the checkpoints,"
    if seen.observed.stored is not None:
        return _failed(Reason.WORKSPACE_LOST, f"{lost} went with the failure: there is nothing to go on from")
    return _waiting(Reason.WORKSPACE_LOST, f"{lost} is gone")


def _refused(seen: Situation) -> Assessment | None:
    return _waiting(*seen.observed.refusal) if seen.observed.refusal else None


def _held_open(seen: Situation) -> Assessment | None:
    """The trainer has ended, and another container keeps its pod, and what that holds, alive."""
    for pod in seen.observed.living:
        if pod.termination is not None and pod.others and not pod.is_deleting:
            message = (
                f"the trainer in pod {pod.name} has ended with exit code {pod.termination.exit_code}, and container "
                f"{', '.join(pod.others)} keeps the pod alive: "
            )
            after = f"it is ended {seen.settings.container_grace:.0f} s after"
            message += after if pod.job else f"no Job owns it any more: `kubectl delete pod {pod.name}`"
            phase, reason = TRAITS.get(pod.stage, TRAITS[seen.stage]).phase, Reason.CONTAINER_LEFT_RUNNING
            message = with_next_step(reason, message) if pod.job else message
            return Assessment(phase, reason, message, is_progressing=False)
    return None


def _lost_node(seen: Situation) -> Assessment | None:
    """A pod that must be gone before anything else may use its workspace, on a node that does not answer."""
    stuck = (found for pod in seen.observed.living if (found := stuck_in_deletion(pod, seen.now)) is not None)
    if (found := next(stuck, None)) is None:
        return None
    message = with_next_step(found.reason, found.message)
    return Assessment(TRAITS[seen.stage].phase, found.reason, message, is_progressing=False)


def _starting(seen: Situation) -> Assessment | None:
    """The stage's Kubernetes Job is to be made, or has no pod yet, or no other one."""
    job, newest = seen.job, seen.newest
    if job is None or job.is_deleting or job.is_gone:
        left = [pod.name for pod in seen.observed.living]
        return _going_on(seen.stage, f"waiting for {left[0]} to end" if left else "")
    if job.is_suspended:
        queue = queue_of(seen)
        message = f"waiting to be admitted by queue {queue}" if queue else f"the Kubernetes Job {job.name} is suspended"
        return Assessment(Phase.QUEUED, Reason.QUEUED, message, is_progressing=False)
    if newest is None or newest.is_over:
        hindrance = unmade(job, newest.ended_at if newest else "")
        if hindrance is not None:
            return _waiting(hindrance.reason, hindrance.message)
    return None if newest else _going_on(seen.stage)


def _pod(seen: Situation) -> Assessment:
    """The stage's Kubernetes Job is at work: its newest pod tells how."""
    stage, pod, health = seen.stage, seen.newest, seen.observed.health
    assert pod is not None
    if (end := ending(pod)) is not None:
        return _between_tries(stage, end)
    if pod.disruption:
        message = with_next_step(Reason.PREEMPTED, pod.disruption)
        return Assessment(TRAITS[stage].phase, Reason.PREEMPTED, message, is_progressing=False)
    if (hindrance := obstacle(pod, seen.now)) is not None:
        return _waiting(hindrance.reason, hindrance.message)
    if not pod.is_running:
        return _going_on(stage)
    if health is not None:
        message = with_next_step(health.reason, health.message)
        return Assessment(TRAITS[stage].phase, health.reason, message, is_progressing=False)
    return Assessment(TRAITS[stage].phase, TRAITS[stage].running)


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


def _between_tries(stage: StageName, end: Ending) -> Assessment:
    """The last pod ended, and what follows is on its way."""
    if end.reason is Reason.SUCCEEDED:
        return Assessment(TRAITS[stage].phase, TRAITS[stage].running)
    reason = Reason.RETRYING if end.reason is Reason.INTERNAL_ERROR else end.reason
    return Assessment(TRAITS[stage].phase, reason, with_next_step(reason, end.message), is_progressing=False)


def _going_on(stage: StageName, message: str = "") -> Assessment:
    """On the way to a running pod. Only `train` tells starting from running: its start may take long."""
    traits = TRAITS[stage]
    return Assessment(traits.phase, Reason.STARTING if traits.is_training else traits.running, message)


def _waiting(reason: Reason, message: str) -> Assessment:
    return Assessment(Phase.WAITING, reason, with_next_step(reason, message), is_progressing=False)


def _failed(reason: Reason, message: str) -> Assessment:
    return Assessment(Phase.FAILED, reason, with_next_step(reason, message), is_progressing=False)
