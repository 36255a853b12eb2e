"""The status of a job, worked out anew from what is observed: milestones, conditions, phase, progress.

It decides what people are told. What is to be done is `plan`'s business; both start from the same `Assessment`. What
the attempts amount to is `attempts`'.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from finetune_api import status as api
from finetune_api import uris
from finetune_api.events import ProgressReport, StageReport
from finetune_api.reasons import NEXT_STEP, ConditionType, Phase, Reason
from finetune_api.spec.job_spec import FineTuneJobSpec, Metadata
from finetune_api.stages import PREPARE, PUBLISH, STAGES, TRAIN, StageName
from finetune_api.text import printable_lines
from finetune_operator.attempts import History, started_at
from finetune_operator.diagnosis import ending
from finetune_operator.observed_state import Observed, published, timestamp

Known = TypeVar("Known")
MESSAGE_LIMIT = 4096
OVER = (Phase.SUCCEEDED, Phase.FAILED)
BARRED = (Reason.NAME_CONFLICT, Reason.WAITING_FOR_JOB, Reason.RUN_CHANGED, Reason.WORKSPACE_LOST)
"""Reasons with which nothing is made."""


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
            return PREPARE
        return PUBLISH if self.is_trained else TRAIN


@dataclass(frozen=True)
class Assessment:
    """How a job stands."""

    phase: Phase
    reason: Reason
    message: str = ""
    is_progressing: bool = True

    @property
    def is_over(self) -> bool:
        return self.phase in OVER


def condition(status: api.FineTuneJobStatus, kind: ConditionType) -> api.Condition:
    """The condition; one that says nothing where there is none."""
    found = next((one for one in status.conditions if one.type == kind), None)
    return found or api.Condition(type=kind, status="Unknown", reason="", last_transition_time="")


def is_true(status: api.FineTuneJobStatus, kind: ConditionType) -> bool:
    return condition(status, kind).status == "True"


def is_final(status: api.FineTuneJobStatus) -> bool:
    """Succeeded or failed: nothing changes it any more, but somebody who brings a failed job back."""
    return is_true(status, ConditionType.COMPLETE) or is_true(status, ConditionType.FAILED)


def is_told_final(body: Mapping[str, Any]) -> bool:
    """The same of an object as a watch tells it."""
    return body.get("status", {}).get("phase") in OVER


def is_edited_after_its_end(metadata: Metadata, status: api.FineTuneJobStatus) -> bool:
    """Whether the spec of a finished job was changed since its status was written."""
    return is_final(status) and status.observed_generation != metadata.generation


NOT_BY_TRIES = (Reason.BAD_SPEC, Reason.DATASET_INVALID, Reason.DIVERGED, Reason.UNSUPPORTED, Reason.DEPENDENCY_FAILED)
"""Failures that more tries would only repeat. `restarts` brings them back all the same: whoever raises it has mended
something that the spec does not show."""


def brought_back(spec: FineTuneJobSpec | None, status: api.FineTuneJobStatus) -> api.FineTuneJobStatus | None:
    """The status of a failed job that goes on because a limit was raised; None for every other job.

    Its stage gets another Kubernetes Job and all its tries. What was reached, and what it cost, stays.
    """
    failed = condition(status, ConditionType.FAILED)
    if spec is None or failed.status != "True" or not is_raised(spec, status, failed.reason):
        return None
    stage = status.stage
    return status.model_copy(
        update={
            "conditions": [one for one in status.conditions if one.type != ConditionType.FAILED],
            "finished_at": None,
            "stage": stage and stage.model_copy(update={"number": stage.number + 1, "tries": 0}),
        }
    )


def is_raised(spec: FineTuneJobSpec, status: api.FineTuneJobStatus, reason: str) -> bool:
    """Whether a limit was raised since the status was decided, so that the end for this reason is none."""
    before = status.limits or api.Limits()
    if has_restarts_left(spec, status):
        return True
    if reason == Reason.DEADLINE_EXCEEDED:
        was = before.deadline_seconds
        return was is not None and (spec.deadline_seconds is None or spec.deadline_seconds > was)
    return before.retry_limit is not None and spec.retry.limit > before.retry_limit and reason not in NOT_BY_TRIES


def has_restarts_left(spec: FineTuneJobSpec, status: api.FineTuneJobStatus) -> bool:
    """Whether spec.restarts was raised since it was last acted upon."""
    return (spec.restarts or 0) > (status.limits or api.Limits()).restarts


def _is_trained(status: api.FineTuneJobStatus) -> bool:
    """By what is written; release 0.1.0 wrote Evaluated alone."""
    return is_true(status, ConditionType.TRAINED) or is_true(status, ConditionType.EVALUATED)


def present_stage(status: api.FineTuneJobStatus) -> tuple[StageName, int]:
    """The first stage that is not known to be done, and the number of its Kubernetes Job."""
    done = Milestones(is_true(status, ConditionType.PREPARED), _is_trained(status))
    listed = status.stage
    return done.stage, listed.number if listed is not None and listed.name == done.stage else 1


def milestones(observed: Observed) -> Milestones:
    """What has been reached, by the status that was written, or by Kubernetes Jobs and trainers that ended well."""
    old, spec = observed.status, observed.spec
    assert spec is not None
    told = [report for stage in STAGES if (report := final_report(observed, stage)) is not None]
    return Milestones(
        is_prepared=is_true(old, ConditionType.PREPARED) or is_complete(observed, PREPARE),
        is_trained=_is_trained(old) or is_complete(observed, TRAIN),
        plan=_first([old.plan, *(report.plan for report in told)]),
        data=_first([old.data, *(report.data for report in told)]),
        evaluation=_first([old.evaluation, *(report.evaluation for report in told)]),
        artifact=_first(published(one, spec) for one in (old.artifact, *(report.artifact for report in told))),
    )


def _first(found: Iterable[Known | None]) -> Known | None:
    """What was told first. publish repeats what the stages before it told, in case that their pods vanished unread."""
    return next((value for value in found if value is not None), None)


def final_report(observed: Observed, stage: StageName) -> StageReport | None:
    """What the pod that completed a stage left; None while the stage is not complete, or when the pod is gone."""
    endings = [ending(pod) for pod in observed.tries(stage)]
    reports = [end.report for end in endings if end is not None and end.reason is Reason.SUCCEEDED]
    return reports[-1] if reports else None


def is_complete(observed: Observed, stage: StageName) -> bool:
    """By the Kubernetes Job, or by the trainer itself, where another container keeps the pod alive."""
    before, job = observed.replaced, observed.jobs.get(stage)
    if before is not None and before.stage == stage and before.is_complete:  # it was to be replaced, and was faster
        return True
    ends = (ending(pod) for pod in observed.tries(stage))
    return job is not None and (job.is_complete or any(end and end.reason is Reason.SUCCEEDED for end in ends))


def summarise(
    observed: Observed,
    reached: Milestones,
    past: History,
    assessment: Assessment,
    run: api.PinnedRun | None,
    now: datetime,
) -> api.FineTuneJobStatus:
    """The status as it should read now, progress left out: that has another writer."""
    old, spec = observed.status, observed.spec
    assert spec is not None
    starts = sorted(start for pod in observed.pods if (start := started_at(pod)))
    return api.FineTuneJobStatus(
        phase=assessment.phase,
        observed_generation=observed.metadata.generation,
        conditions=_conditions(observed, reached, assessment, timestamp(now)),
        run=run,
        dependencies=dependencies(observed),
        stage=past.stage if run else None,
        limits=_limits(observed, spec, assessment),
        plan=reached.plan,
        data=reached.data,
        attempts=list(past.attempts),
        recovery=past.recovery,
        evaluation=reached.evaluation,
        artifact=reached.artifact,
        usage=past.usage,
        started_at=old.started_at or (starts[0] if starts else None),
        finished_at=(old.finished_at or timestamp(now)) if assessment.is_over else None,
    )


def _limits(observed: Observed, spec: FineTuneJobSpec, assessment: Assessment) -> api.Limits:
    """The limits that this status is decided by. A restart that nothing was made of yet stays to be asked for."""
    is_heard = observed.stored is not None or not (assessment.is_over or assessment.reason in BARRED)
    before = observed.status.limits
    return api.Limits(
        deadline_seconds=spec.deadline_seconds,
        retry_limit=spec.retry.limit,
        restarts=(spec.restarts or 0) if before is None or is_heard else min(before.restarts, spec.restarts or 0),
    )


def unreadable(observed: Observed, now: datetime) -> api.FineTuneJobStatus:
    """The status as it was, but for the condition: what cannot be read ends nothing and moves nothing."""
    old = observed.status
    message = with_next_step(Reason.UNREADABLE, observed.problem)
    assessment = Assessment(
        Phase(old.phase) if old.phase in set(Phase) else Phase.WAITING, Reason.UNREADABLE, message, False
    )
    said = {ConditionType.PROGRESSING: (False, assessment.reason, message)} | _for_kstatus(assessment)
    kept = [one for one in old.conditions if one.type not in (*said, *KSTATUS)]
    fresh = [_condition(observed, kind, *words, timestamp(now)) for kind, words in said.items()]
    return old.model_copy(update={"phase": assessment.phase, "conditions": [*kept, *fresh], "progress": None})


def dependencies(observed: Observed) -> list[api.Dependency]:
    """What the jobs behind `job://` have published, pinned when each was first seen complete."""
    pinned = {one.name: one for one in observed.status.dependencies if re.match(uris.OUTPUT_PATTERN, one.uri)}
    for name in observed.spec.named_jobs if observed.spec else ():
        job = observed.named_jobs.get(name)
        if name not in pinned and job is not None and job.adapter is not None:
            pinned[name] = api.Dependency(name=name, uri=job.adapter.uri, digest=job.adapter.digest)
    return list(pinned.values())


KSTATUS = (ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED)
Words = tuple[bool, Reason, str]


def _conditions(observed: Observed, reached: Milestones, assessment: Assessment, now: str) -> list[api.Condition]:
    """All conditions, in the order of a job's life; those that another release of the operator knows are kept."""
    said: dict[ConditionType, Words] = {}
    is_rejected = assessment.reason is Reason.BAD_SPEC
    left_out = condition(observed.status, ConditionType.ACCEPTED).message if observed.status.run else ""
    if observed.unknown:
        left_out = f"not known to this release of the operator, and not used: {', '.join(observed.unknown)}"
    said[ConditionType.ACCEPTED] = (
        (False, Reason.BAD_SPEC, assessment.message) if is_rejected else (True, Reason.ACCEPTED, left_out)
    )
    if reached.is_prepared:
        said[ConditionType.PREPARED] = (True, Reason.PREPARED, _prepared_message(reached))
    said[ConditionType.PROGRESSING] = (assessment.is_progressing, assessment.reason, assessment.message)
    if assessment.reason in (Reason.SUSPENDED, Reason.SUSPENDING):
        said[ConditionType.SUSPENDED] = (assessment.reason is Reason.SUSPENDED, assessment.reason, assessment.message)
    elif condition(observed.status, ConditionType.SUSPENDED).reason:
        said[ConditionType.SUSPENDED] = (False, Reason.RESUMED, "")
    if reached.is_trained:
        said[ConditionType.TRAINED] = (True, Reason.TRAINED, _trained_message(reached))
    if (scores := _scores(reached)) is not None:
        said[ConditionType.EVALUATED] = (True, Reason.EVALUATED, scores)
    if reached.artifact is not None and assessment.phase is Phase.SUCCEEDED:
        said[ConditionType.PUBLISHED] = (True, Reason.PUBLISHED, f"{reached.artifact.uri} {reached.artifact.digest}")
        said[ConditionType.COMPLETE] = (True, Reason.SUCCEEDED, assessment.message)
    if assessment.phase is Phase.FAILED:
        said[ConditionType.FAILED] = (True, assessment.reason, assessment.message)
    said |= _for_kstatus(assessment)
    unknown = [one for one in observed.status.conditions if one.type not in set(ConditionType)]
    known = [_condition(observed, kind, *said[kind], now) for kind in ConditionType if kind in said]
    return [*known, *unknown][: api.CONDITIONS]


def _for_kstatus(assessment: Assessment) -> dict[ConditionType, Words]:
    """What Flux and Argo CD look at: Ready once it has succeeded; Reconciling and Stalled only while they are true."""
    is_done, words = assessment.phase is Phase.SUCCEEDED, (assessment.reason, assessment.message)
    said: dict[ConditionType, Words] = {ConditionType.READY: (is_done, *words)}
    if assessment.phase is Phase.FAILED:
        said[ConditionType.STALLED] = (True, *words)
    elif not is_done and assessment.reason is not Reason.SUSPENDED:
        said[ConditionType.RECONCILING] = (True, *words)
    return said


def with_kstatus(ended: api.FineTuneJobStatus) -> api.FineTuneJobStatus | None:
    """The status of a job that an older operator ended, with the conditions of kstatus; None: it has them."""
    if condition(ended, ConditionType.READY).reason:
        return None
    is_done = is_true(ended, ConditionType.COMPLETE)
    end = condition(ended, ConditionType.COMPLETE if is_done else ConditionType.FAILED)
    added = [end.model_copy(update={"type": ConditionType.READY, "status": "True" if is_done else "False"})]
    if not is_done:
        added.append(end.model_copy(update={"type": ConditionType.STALLED}))
    return ended.model_copy(update={"conditions": [*ended.conditions, *added], "progress": None})


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
        message=printable_lines(message)[:MESSAGE_LIMIT],
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


def _trained_message(reached: Milestones) -> str:
    steps = reached.plan.total_steps if reached.plan else None
    best = reached.evaluation.best_step if reached.evaluation else None
    if steps is None:
        return ""
    # How many were made is not told: a run that stops early keeps the best.
    return f"{steps} steps" if best in (None, steps) else f"the weights of step {best} of {steps} are kept"


def _scores(reached: Milestones) -> str | None:
    """What was measured on held-out data; None where nothing was."""
    result = reached.evaluation
    loss = (result.tuned or {}).get(api.Metric.LOSS) if result is not None else None
    if result is None or loss is None:
        return None
    before = (result.base or {}).get(api.Metric.LOSS)
    return f"loss on the {result.split} split: {f'{before:.4g} → ' if before is not None else ''}{loss:.4g}"


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
        epoch=round(report.epoch, 3) if report.stage == TRAIN else None,
        percent=min(100, report.step * 100 // total) if total else None,
        eta_seconds=eta_seconds,
        loss=_rounded(report.loss),
        eval_loss=_rounded(report.eval_loss),
        learning_rate=report.learning_rate,
        tokens_per_second=_rounded(report.tokens_per_second),
        checkpoint_step=report.checkpoint_step if report.stage == TRAIN else None,
        updated_at=updated_at,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def settled_progress(observed: Observed, assessment: Assessment, now: datetime) -> api.Progress | None:
    """What status.progress should say once no pod reports: the trainer's last word, and no time of arrival."""
    old = observed.status.progress
    ended = [end for pod in observed.pods_of(TRAIN) if (end := ending(pod)) is not None]
    report = ended[-1].report.progress if ended and ended[-1].report is not None else None
    if report is not None and report.stage == TRAIN and _is_news(old, report):
        return progress_of(report, None, timestamp(now))
    if old is not None and old.percent is None and assessment.phase == Phase.SUCCEEDED:  # a run without steps
        return old.model_copy(update={"percent": 100, "eta_seconds": None})
    is_idle = not any(pod.is_running for pod in observed.pods) or assessment.is_over
    if old is not None and old.eta_seconds is not None and is_idle:
        return old.model_copy(update={"eta_seconds": None})
    return old


def _is_news(old: api.Progress | None, report: ProgressReport) -> bool:
    """Whether a training pod's last word says more than what is shown."""
    if old is None or old.stage == PREPARE:
        return True
    if report.step < (old.step or 0):
        return False
    shown = old.model_copy(update={"eta_seconds": None})
    return progress_of(report, None, old.updated_at or "") != shown
