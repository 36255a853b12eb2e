"""`finetune describe`: all that there is to say about one job, for people.

Pure: from the object that the API server holds to what rich can print.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetune_api import labels
from finetune_api.reasons import NEXT_STEP, ConditionType, Phase, Reason
from finetune_api.spec.scheduling import Resources
from finetune_api.stages import PREPARE, TRAIN
from finetune_api.status import Attempt, Condition, FineTuneJobStatus, Progress
from finetune_cli.stored import StoredJob
from finetune_cli.views import formatting, summary
from finetune_cli.views.terminal import plain, plain_lines
from finetune_operator.manifests import workspace_name

COLOURS = {Phase.SUCCEEDED: "green", Phase.FAILED: "red", Phase.SUSPENDED: "yellow", Phase.WAITING: "yellow"}

REPEATED = (ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED)
"""Conditions for tools that know kstatus: they say again what the others say."""


def description(job: StoredJob, now: datetime) -> Group:
    """Everything about `job`; `now` dates it."""
    return Group(*_parts(job, now))


def _parts(job: StoredJob, now: datetime) -> Iterator[RenderableType]:
    status = job.status
    yield Text.assemble(plain(job.metadata.name, "bold"), plain(f" in {job.metadata.namespace}  "), phase(status.phase))
    yield _facts(job, now)
    said = failure(status) or hindrance(status)
    if said is not None:
        yield said
    if status.evaluation is not None:
        yield Text()
        yield summary.results(status.evaluation)
        yield from (summary.answers(sample) for sample in status.evaluation.samples[:1])
    listed: list[tuple[str, Attempt]] = [(TRAIN, one) for one in status.attempts]
    if status.stage is not None and status.stage.name != TRAIN:
        listed += [(status.stage.name, one) for one in status.stage.attempts]
    if listed:
        yield Text()
        yield attempts(listed)
    shown = [one for one in status.conditions if one.type not in REPEATED]
    if shown:
        yield Text()
        yield conditions(shown, now)


def phase(name: str | None, trouble: str = "") -> Text:
    """The phase in its colour, and what is wrong; a job that no operator has seen has none."""
    known = next((known for known in Phase if known == name), None)
    words = ", ".join(part for part in (name or "not seen by an operator yet", trouble) if part)
    return plain(words, COLOURS.get(known, "cyan") if known else "yellow")


def _progressing(status: FineTuneJobStatus) -> Condition | None:
    return next((one for one in status.conditions if one.type == ConditionType.PROGRESSING), None)


def trouble(status: FineTuneJobStatus) -> str:
    """The reason why a job does not go on as it should; empty if it does."""
    progressing = _progressing(status)
    return progressing.reason if progressing is not None and progressing.reason in set(NEXT_STEP) else ""


def hindrance(status: FineTuneJobStatus) -> Text | None:
    """What keeps a job that has not ended, and what to do; None if nothing does."""
    progressing = _progressing(status)
    if progressing is None or not trouble(status):
        return None
    return summary.failure(progressing.reason, progressing.message, progressing.reason, style="bold yellow", mark="!")


def failure(status: FineTuneJobStatus) -> Text | None:
    """Why the job failed and what to do next; None if it has not."""
    for condition in status.conditions:
        if condition.type == ConditionType.FAILED and condition.status == "True":
            return summary.failure(f"failed: {condition.reason}", condition.message, condition.reason)
    return None


def _facts(job: StoredJob, now: datetime) -> Table:
    """What was asked for and what has become of it, a line each."""
    status = job.status
    artifact = status.artifact
    rows = [
        *_asked(job),
        ("plan", summary.plan_line(status.plan) if status.plan else ""),
        ("records", summary.data_line(status.data) if status.data else ""),
        ("image", f"{status.run.image}, pinned" if status.run and status.run.image else ""),
        ("stage", _stage(job)),
        ("progress", progress_line(status.progress) if status.progress else ""),
        ("usage", _usage(status)),
        ("workspace", _workspace(job)),
        ("age", formatting.duration(age_seconds(job.metadata.creation_timestamp, now))),
    ]
    if artifact is not None:
        rows.append(("artifact", f"{artifact.uri} ({artifact.kind}, {formatting.size(artifact.size_bytes)})"))
        rows.append(("digest", artifact.digest or formatting.MISSING))
    elif job.spec is not None:
        rows.append(("output", job.spec.output.uri))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        if text:
            table.add_row(name, plain(text))
    return table


def _asked(job: StoredJob) -> list[tuple[str, str]]:
    spec = job.spec
    if spec is None:
        return [("spec", f"cannot be read ({job.problem}): another release wrote it; upgrade this command")]
    return [
        ("model", f"{spec.model.uri}{f' @ {spec.model.revision}' if spec.model.revision else ''}"),
        ("data", ", ".join(source.uri for source in spec.dataset.train)),
        ("train", f"{spec.objective.kind} with {spec.method.kind}, {_hardware(spec.resources)}"),
    ]


def _hardware(resources: Resources) -> str:
    return f"{resources.gpus} × {resources.gpu_resource}" if resources.gpus else f"{resources.cpu} CPU cores"


def _stage(job: StoredJob) -> str:
    """`train, Kubernetes Job bot-1a2b3-train-2, 1 of 4 tries failed`."""
    stage, limits = job.status.stage, job.status.limits
    if stage is None or job.status.phase == Phase.SUCCEEDED:
        return ""
    name = labels.stage_job_name(job.metadata.name, job.metadata.uid, stage.name, stage.number)
    allowed = f" of {limits.retry_limit + 1}" if limits is not None and limits.retry_limit is not None else ""
    tries = f", {stage.tries}{allowed} tries failed" if stage.tries else ""
    return f"{stage.name}, Kubernetes Job {name}{tries}"


def _workspace(job: StoredJob) -> str:
    """Where the checkpoints are while there are any, and who deletes them."""
    status, spec = job.status, job.spec
    if status.run is None or spec is None:
        return ""
    is_success = status.phase == Phase.SUCCEEDED
    if job.has_ended and spec.resources.workspace.is_deleted_after(is_success):
        return ""
    name = workspace_name(job.metadata)
    if status.phase != Phase.FAILED:
        return f"claim {name}"
    return f"claim {name}, kept: `kubectl delete pvc -n {job.metadata.namespace} {name}` when it is no longer needed"


def restarting(job: StoredJob) -> str:
    """What happens now that its restarts were raised."""
    name, status = job.metadata.name, job.status
    stage, step = (status.stage.name if status.stage else PREPARE), _checkpoint_step(status)
    place = f"from its checkpoint at step {step:,}" if step and stage == TRAIN else f"with stage {stage}"
    if any(one.type == ConditionType.FAILED and one.reason == Reason.DEADLINE_EXCEEDED for one in status.conditions):
        said = "has used up its time: raise spec.deadlineSeconds too, or it fails again"
    elif status.phase == Phase.FAILED:
        said = f"goes on {place}, with all its tries"
    elif status.phase == Phase.SUSPENDED:
        said = "is suspended: it goes on when spec.suspend is false"
    elif status.phase is None:
        said = "was not seen by an operator yet"
    else:
        said = f"starts a new attempt of {stage}: a running pod is ended, with time for a checkpoint"
    return f"{name} {said}. `finetune watch {name}` follows it."


def _checkpoint_step(status: FineTuneJobStatus) -> int:
    steps = [one.checkpoint_step for one in status.attempts]
    return max((step for step in steps if step), default=0)


def progress_line(progress: Progress) -> str:
    """`train, 12/120 (10 %), loss 2.314, eval 2.402, 1.2 k tokens/s, 1 m 20 s left`."""
    parts = [progress.stage or ""]
    if progress.step is not None:
        total = f"/{progress.total_steps:,}" if progress.total_steps else ""
        percent = f" ({progress.percent} %)" if progress.percent is not None else ""
        parts.append(f"{progress.step:,}{total}{percent}")
    parts += [f"loss {formatting.loss(progress.loss)}"] if progress.loss is not None else []
    parts += [f"eval {formatting.loss(progress.eval_loss)}"] if progress.eval_loss is not None else []
    if progress.tokens_per_second:
        parts.append(f"{formatting.count(progress.tokens_per_second)} tokens/s")
    if progress.eta_seconds is not None:
        parts.append(f"{formatting.duration(progress.eta_seconds)} left")
    return ", ".join(part for part in parts if part)


def _usage(status: FineTuneJobStatus) -> str:
    usage, recovery = status.usage, status.recovery
    if usage is None:
        return ""
    wasted = f", {formatting.duration(usage.wasted_gpu_seconds)} of it wasted" if usage.wasted_gpu_seconds else ""
    restarts = f", {recovery.restarts} restarts" if recovery is not None and recovery.restarts else ""
    gpu = f", {formatting.duration(usage.gpu_seconds)} of GPU{wasted}" if usage.gpu_seconds else ""
    return f"{formatting.duration(usage.active_seconds)} training{gpu}{restarts}"


def attempts(found: Sequence[tuple[str, Attempt]]) -> Table:
    """The pods that ran, each with its stage; those of prepare and publish once they have ended."""
    table = Table("attempt", "pod", "steps", "ended", box=None, pad_edge=False, header_style="bold")
    for stage, attempt in found:
        steps = f"{attempt.from_step or 0:,} → {'…' if attempt.to_step is None else f'{attempt.to_step:,}'}"
        ended = attempt.reason or ("running" if attempt.finished_at is None else "ended")
        told = steps if stage == TRAIN else ""
        table.add_row(f"{stage} {attempt.number}", plain(attempt.pod or formatting.MISSING), told, plain(ended))
    return table


def conditions(found: list[Condition], now: datetime) -> Table:
    """The conditions, latest first."""
    table = Table("condition", "status", "reason", "since", "message", box=None, pad_edge=False, header_style="bold")
    table.columns[4].overflow = "fold"
    for condition in sorted(found, key=lambda each: each.last_transition_time, reverse=True):
        since = formatting.duration(age_seconds(condition.last_transition_time, now))
        kind, state, reason = map(plain, (condition.type, condition.status, condition.reason))
        table.add_row(kind, state, reason, since, plain_lines(condition.message))
    return table


def age_seconds(time: str | None, now: datetime) -> float | None:
    """Seconds since an RFC 3339 time; None where there is none."""
    try:
        return (now - datetime.fromisoformat(time)).total_seconds() if time else None
    except ValueError:
        return None
