"""The status of a job, worked out anew from what is observed: milestones, attempts, usage, conditions, phase.

It decides what people are told. What is to be done is `plan`'s business; both start from the same `Verdict`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TypeVar

from finetune_api import status as api
from finetune_api.events import ProgressReport, StageReport
from finetune_api.reasons import NEXT_STEP, ConditionType, Phase, Reason
from finetune_operator.diagnosis import Ending, ending
from finetune_operator.facts import STAGES, Observed, Pod, StageName, seconds_between, timestamp

Known = TypeVar("Known")
ATTEMPTS_KEPT = 100
MESSAGE_LIMIT = 4096
PHASES: dict[StageName, Phase] = {"prepare": Phase.PREPARING, "train": Phase.TRAINING, "publish": Phase.PUBLISHING}


@dataclass(frozen=True)
class Milestones:
    """What is done and stays done."""

    is_prepared: bool = False
    is_trained: bool = False
    plan: api.Plan | None = None
    data: api.Data | None = None
    evaluation: api.EvaluationResult | None = None
    artifact: api.Artifact | None = None

    @property
    def stage(self) -> StageName:
        """The stage to run now."""
        if not self.is_prepared:
            return "prepare"
        return "publish" if self.is_trained else "train"


@dataclass(frozen=True)
class Verdict:
    """How a job stands."""

    phase: Phase
    reason: Reason
    message: str = ""
    is_progressing: bool = True


def condition(status: api.FineTuneJobStatus, kind: ConditionType) -> api.Condition:
    """The condition; one that says nothing where there is none."""
    nothing = api.Condition(type=kind, status="Unknown", reason="", last_transition_time="")
    return next((one for one in status.conditions if one.type == kind), nothing)


def is_true(status: api.FineTuneJobStatus, kind: ConditionType) -> bool:
    return condition(status, kind).status == "True"


def is_finished(status: api.FineTuneJobStatus) -> bool:
    """Succeeded or failed: nothing changes it any more."""
    return is_true(status, ConditionType.COMPLETE) or is_true(status, ConditionType.FAILED)


def next_stage(status: api.FineTuneJobStatus) -> StageName:
    """The first stage that is not known to be done."""
    done = Milestones(is_true(status, ConditionType.PREPARED), is_true(status, ConditionType.EVALUATED))
    return done.stage


def milestones(observed: Observed) -> Milestones:
    """What has been reached, by the status that was written or by Kubernetes Jobs that are complete."""
    old = observed.status
    told = [report for stage in STAGES if (report := final_report(observed, stage)) is not None]
    return Milestones(
        is_prepared=is_true(old, ConditionType.PREPARED) or _is_complete(observed, "prepare"),
        is_trained=is_true(old, ConditionType.EVALUATED) or _is_complete(observed, "train"),
        plan=_first([old.plan, *(report.plan for report in told)]),
        data=_first([old.data, *(report.data for report in told)]),
        evaluation=_first([old.evaluation, *(report.evaluation for report in told)]),
        artifact=_first([old.artifact, *(report.artifact for report in told)]),
    )


def _first(found: Iterable[Known | None]) -> Known | None:
    """What was told first. publish repeats what the stages before it told, in case that their pods vanished unread."""
    return next((value for value in found if value is not None), None)


def final_report(observed: Observed, stage: StageName) -> StageReport | None:
    """What the pod that completed a stage left; None while the stage is not complete, or when the pod is gone."""
    if not _is_complete(observed, stage):
        return None
    endings = [ending(pod) for pod in observed.tries(stage)]
    reports = [end.report for end in endings if end is not None and end.reason is Reason.SUCCEEDED]
    return reports[-1] if reports else None


def _is_complete(observed: Observed, stage: StageName) -> bool:
    job = observed.jobs.get(stage)
    return job is not None and job.is_complete


def summarise(observed: Observed, reached: Milestones, verdict: Verdict, now: datetime) -> api.FineTuneJobStatus:
    """The status as it should read now, progress left out: that has another writer."""
    old = observed.status
    is_over = verdict.phase in (Phase.SUCCEEDED, Phase.FAILED)
    attempts = attempts_of(observed, verdict, now)
    starts = sorted(start for start in (_started_at(pod) for pod in observed.pods) if start)
    return api.FineTuneJobStatus(
        phase=verdict.phase,
        observed_generation=observed.metadata.generation,
        conditions=_conditions(observed, reached, verdict, timestamp(now)),
        plan=reached.plan,
        data=reached.data,
        attempts=attempts,
        recovery=_recovery(attempts) if attempts else None,
        evaluation=reached.evaluation,
        artifact=reached.artifact,
        usage=_usage(observed, attempts) if attempts else None,
        started_at=old.started_at or (starts[0] if starts else None),
        finished_at=(old.finished_at or timestamp(now)) if is_over else None,
    )


def attempts_of(observed: Observed, verdict: Verdict, now: datetime) -> list[api.Attempt]:
    """One entry per training pod whose container ran: those listed already, brought up to date, then new ones."""
    pods = {pod.name: pod for pod in observed.pods_of("train") if _started_at(pod)}
    attempts = [
        _updated(attempt, pods.get(attempt.pod or ""), observed, verdict, now) for attempt in observed.status.attempts
    ]
    known = {attempt.pod for attempt in attempts}
    for pod in sorted((pod for pod in pods.values() if pod.name not in known), key=lambda pod: _started_at(pod) or ""):
        number = attempts[-1].number + 1 if attempts else 1
        fresh = api.Attempt(number=number, pod=pod.name, started_at=_started_at(pod))
        attempts.append(_updated(fresh, pod, observed, verdict, now))
    return attempts[-ATTEMPTS_KEPT:]


def _updated(attempt: api.Attempt, pod: Pod | None, observed: Observed, verdict: Verdict, now: datetime) -> api.Attempt:
    """The attempt, ended if its pod has ended or gone. An ended attempt is history and does not change."""
    if attempt.finished_at:
        return attempt
    end = ending(pod) if pod else None
    is_over = verdict.phase in (Phase.SUCCEEDED, Phase.FAILED)
    if pod is not None and end is None and not is_over:
        return attempt
    if end is not None and end.reason is Reason.SUCCEEDED and not _is_complete(observed, "train"):
        # Told together with what follows from it, in one write.
        return attempt
    report = _last_report(pod, end, observed)
    finished = pod.termination.finished_at if pod and pod.termination else None
    return attempt.model_copy(
        update={
            "finished_at": finished or timestamp(now),
            "reason": _reason_of_end(end, observed, verdict),
            "from_step": report.resumed_from_step if report else attempt.from_step,
            "to_step": report.step if report else _known_step(observed),
            "checkpoint_step": report.checkpoint_step if report else None,
        }
    )


def _reason_of_end(end: Ending | None, observed: Observed, verdict: Verdict) -> Reason:
    if verdict.reason is Reason.DEADLINE_EXCEEDED:
        return Reason.DEADLINE_EXCEEDED
    stopped = end is None or end.reason is Reason.PREEMPTED
    if stopped and observed.spec is not None and observed.spec.suspend:
        return Reason.SUSPENDED
    return end.reason if end else Reason.PREEMPTED


def _last_report(pod: Pod | None, end: Ending | None, observed: Observed) -> ProgressReport | None:
    if end is not None and end.report is not None and end.report.progress is not None:
        return end.report.progress
    return observed.reports.get(pod.uid) if pod else None


def _known_step(observed: Observed) -> int | None:
    progress = observed.status.progress
    return progress.step if progress is not None and progress.stage == "train" else None


def _started_at(pod: Pod) -> str | None:
    return pod.running_since or (pod.termination.started_at if pod.termination else None)


def _steps_lost(attempt: api.Attempt, following: api.Attempt) -> int:
    """Steps that the following attempt had to do again; 0 while it is not known."""
    if attempt.to_step is None or following.from_step is None:
        return 0
    return max(0, attempt.to_step - following.from_step)


def _recovery(attempts: Sequence[api.Attempt]) -> api.Recovery:
    lost = sum(_steps_lost(one, following) for one, following in pairwise(attempts))
    return api.Recovery(restarts=attempts[-1].number - 1, steps_lost=lost)


def _usage(observed: Observed, attempts: Sequence[api.Attempt]) -> api.Usage:
    """Seconds of ended attempts, so that a running one does not change the status all the time."""
    gpus = observed.spec.resources.gpus if observed.spec else 0
    seconds = [seconds_between(attempt.started_at, attempt.finished_at) for attempt in attempts]
    wasted = sum(length * _share_lost(attempt) for length, attempt in zip(seconds, attempts, strict=True))
    active = round(sum(seconds))
    return api.Usage(active_seconds=active, gpu_seconds=active * gpus, wasted_gpu_seconds=round(wasted * gpus))


def _share_lost(attempt: api.Attempt) -> float:
    """The part of an ended attempt that no later one can build on: 0 to 1."""
    if attempt.reason == Reason.SUCCEEDED:
        return 0
    start, end = attempt.from_step or 0, attempt.to_step or 0
    kept = max(start, attempt.checkpoint_step or 0)
    return min(1.0, max(0, end - kept) / (end - start)) if end > start else 1


def _conditions(observed: Observed, reached: Milestones, verdict: Verdict, now: str) -> list[api.Condition]:
    """All conditions, in the order of a job's life."""
    said: dict[ConditionType, tuple[bool, Reason, str]] = {}
    is_rejected = observed.spec is None or (observed.refusal is not None and verdict.reason is Reason.BAD_SPEC)
    accepted = (False, Reason.BAD_SPEC, verdict.message) if is_rejected else (True, Reason.ACCEPTED, "")
    said[ConditionType.ACCEPTED] = accepted
    if reached.is_prepared:
        said[ConditionType.PREPARED] = (True, Reason.PREPARED, _prepared_message(reached))
    said[ConditionType.PROGRESSING] = (verdict.is_progressing, verdict.reason, verdict.message)
    if verdict.reason in (Reason.SUSPENDED, Reason.SUSPENDING):
        said[ConditionType.SUSPENDED] = (verdict.reason is Reason.SUSPENDED, verdict.reason, verdict.message)
    elif condition(observed.status, ConditionType.SUSPENDED).reason:
        said[ConditionType.SUSPENDED] = (False, Reason.RESUMED, "")
    if reached.is_trained:
        said[ConditionType.EVALUATED] = (True, Reason.EVALUATED, _evaluated_message(reached))
    if reached.artifact is not None and verdict.phase is Phase.SUCCEEDED:
        said[ConditionType.PUBLISHED] = (True, Reason.PUBLISHED, f"{reached.artifact.uri} {reached.artifact.digest}")
        said[ConditionType.COMPLETE] = (True, Reason.SUCCEEDED, verdict.message)
    if verdict.phase is Phase.FAILED:
        said[ConditionType.FAILED] = (True, verdict.reason, verdict.message)
    return [_condition(observed, kind, *said[kind], now) for kind in ConditionType if kind in said]


def _condition(
    observed: Observed, kind: ConditionType, holds: bool, reason: Reason, message: str, now: str
) -> api.Condition:
    """The condition; its transition time moves only when its status does."""
    word = "True" if holds else "False"
    before = condition(observed.status, kind)
    return api.Condition(
        type=kind,
        status=word,
        reason=reason,
        message=message[:MESSAGE_LIMIT],
        last_transition_time=before.last_transition_time if before.status == word else now,
        observed_generation=observed.metadata.generation,
    )


def _prepared_message(reached: Milestones) -> str:
    examples = reached.data.train_examples if reached.data else None
    steps = reached.plan.total_steps if reached.plan else None
    parts = [
        f"{examples} training examples" if examples is not None else "",
        f"{steps} steps" if steps is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def _evaluated_message(reached: Milestones) -> str:
    result = reached.evaluation
    if result is None or result.tuned is None or result.tuned.loss is None:
        return "training has ended; there is no held-out result"
    before = f"{result.base.loss:.4g} → " if result.base is not None and result.base.loss is not None else ""
    return f"loss on the {result.split} split: {before}{result.tuned.loss:.4g}"


def with_next_step(reason: Reason, message: str) -> str:
    """The message, and what to do about it."""
    return " ".join(part for part in (_sentence(message), NEXT_STEP.get(reason, "")) if part)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?" else text + "."


def progress_of(report: ProgressReport, eta_seconds: int | None, updated_at: str) -> api.Progress:
    """A progress page as status.progress shows it."""
    total = report.total_steps
    return api.Progress(
        stage=report.stage,
        step=report.step,
        total_steps=total or None,
        epoch=round(report.epoch, 3) if report.stage == "train" else None,
        percent=min(100, report.step * 100 // total) if total else None,
        eta_seconds=eta_seconds,
        loss=_rounded(report.loss),
        eval_loss=_rounded(report.eval_loss),
        learning_rate=report.learning_rate,
        tokens_per_second=_rounded(report.tokens_per_second),
        checkpoint_step=report.checkpoint_step if report.stage == "train" else None,
        updated_at=updated_at,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def settled_progress(observed: Observed, verdict: Verdict, now: datetime) -> api.Progress | None:
    """What status.progress should say once no pod reports: the trainer's last word, and no time of arrival."""
    old = observed.status.progress
    ended = [end for pod in observed.pods_of("train") if (end := ending(pod)) is not None]
    report = ended[-1].report.progress if ended and ended[-1].report is not None else None
    if report is not None and report.stage == "train" and _is_news(old, report):
        return progress_of(report, None, timestamp(now))
    if old is not None and old.percent is None and verdict.phase == Phase.SUCCEEDED:  # a run without steps
        return old.model_copy(update={"percent": 100, "eta_seconds": None})
    is_idle = not any(pod.is_running for pod in observed.pods) or verdict.phase in (Phase.SUCCEEDED, Phase.FAILED)
    if old is not None and old.eta_seconds is not None and is_idle:
        return old.model_copy(update={"eta_seconds": None})
    return old


def _is_news(old: api.Progress | None, report: ProgressReport) -> bool:
    """Whether a training pod's last word says more than what is shown."""
    if old is None or old.stage == "prepare":
        return True
    if report.step < (old.step or 0):
        return False
    shown = old.model_copy(update={"eta_seconds": None})
    return progress_of(report, None, old.updated_at or "") != shown
