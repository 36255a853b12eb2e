"""`finetune describe`: all that there is to say about one job, for people.

Pure: from the object that the API server holds to what rich can print.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetune_api.job import FineTuneJob
from finetune_api.reasons import ConditionType, Phase
from finetune_api.status import Attempt, Condition, FineTuneJobStatus, Progress
from finetune_cli import figures, summary
from finetune_cli.cluster import ClusterError
from finetune_cli.terminal import plain, plain_lines

COLOURS = {Phase.SUCCEEDED: "green", Phase.FAILED: "red", Phase.SUSPENDED: "yellow", Phase.WAITING: "yellow"}


def parsed(body: dict[str, Any]) -> FineTuneJob:
    """The object as the contract knows it; raises ClusterError for one that another version of it wrote."""
    try:
        return FineTuneJob.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ClusterError(
            f"{body['metadata']['name']}: cannot read {field}: upgrade this command or the CRD"
        ) from None


def description(job: FineTuneJob, now: datetime) -> Group:
    """Everything about `job`; `now` dates it."""
    return Group(*_parts(job, now))


def _parts(job: FineTuneJob, now: datetime) -> Iterator[RenderableType]:
    status = job.status
    yield Text.assemble(plain(job.metadata.name, "bold"), plain(f" in {job.metadata.namespace}  "), phase(status.phase))
    yield _facts(job, now)
    failed = failure(status)
    if failed is not None:
        yield failed
    if status.evaluation is not None:
        yield Text()
        yield summary.results(status.evaluation)
        yield from (summary.answers(sample) for sample in status.evaluation.samples[:1])
    if status.attempts:
        yield Text()
        yield attempts(status.attempts)
    if status.conditions:
        yield Text()
        yield conditions(status.conditions, now)


def phase(name: str | None) -> Text:
    """The phase in its colour; a job that no operator has seen has none."""
    known = next((known for known in Phase if known == name), None)
    return plain(name or "not seen by an operator yet", COLOURS.get(known, "cyan") if known else "yellow")


def failure(status: FineTuneJobStatus) -> Text | None:
    """Why the job failed and what to do next; None if it has not."""
    for condition in status.conditions:
        if condition.type == ConditionType.FAILED and condition.status == "True":
            return summary.failure(f"failed: {condition.reason}", condition.message, condition.reason)
    return None


def _facts(job: FineTuneJob, now: datetime) -> Table:
    """What was asked for and what has become of it, a line each."""
    spec, status = job.spec, job.status
    sources = ", ".join(source.uri for source in spec.dataset.train)
    rows = [
        ("model", f"{spec.model.uri}{f' @ {spec.model.revision}' if spec.model.revision else ''}"),
        ("data", sources),
        ("train", f"{spec.objective.kind} with {spec.method.kind}, {_hardware(job)}"),
        ("plan", summary.plan_line(status.plan) if status.plan else ""),
        ("records", summary.data_line(status.data) if status.data else ""),
        ("progress", progress_line(status.progress) if status.progress else ""),
        ("usage", _usage(status)),
        ("age", figures.duration(age_seconds(job.metadata.creation_timestamp, now))),
    ]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        if text:
            table.add_row(name, plain(text))
    artifact = status.artifact
    if artifact is not None:
        table.add_row("artifact", plain(f"{artifact.uri} ({artifact.kind}, {figures.size(artifact.size_bytes)})"))
        table.add_row("digest", plain(artifact.digest or figures.MISSING))
    else:
        table.add_row("output", plain(spec.output.uri))
    return table


def _hardware(job: FineTuneJob) -> str:
    resources = job.spec.resources
    return f"{resources.gpus} × {resources.gpu_resource}" if resources.gpus else f"{resources.cpu} CPU cores"


def progress_line(progress: Progress) -> str:
    """`train, 12/120 (10 %), loss 2.314, eval 2.402, 1.2 k tokens/s, 1 m 20 s left`."""
    parts = [progress.stage or ""]
    if progress.step is not None:
        total = f"/{progress.total_steps:,}" if progress.total_steps else ""
        percent = f" ({progress.percent} %)" if progress.percent is not None else ""
        parts.append(f"{progress.step:,}{total}{percent}")
    parts += [f"loss {figures.loss(progress.loss)}"] if progress.loss is not None else []
    parts += [f"eval {figures.loss(progress.eval_loss)}"] if progress.eval_loss is not None else []
    if progress.tokens_per_second:
        parts.append(f"{figures.count(progress.tokens_per_second)} tokens/s")
    if progress.eta_seconds is not None:
        parts.append(f"{figures.duration(progress.eta_seconds)} left")
    return ", ".join(part for part in parts if part)


def _usage(status: FineTuneJobStatus) -> str:
    usage, recovery = status.usage, status.recovery
    if usage is None:
        return ""
    wasted = f", {figures.duration(usage.wasted_gpu_seconds)} of it wasted" if usage.wasted_gpu_seconds else ""
    restarts = f", {recovery.restarts} restarts" if recovery is not None and recovery.restarts else ""
    gpu = f", {figures.duration(usage.gpu_seconds)} of GPU{wasted}" if usage.gpu_seconds else ""
    return f"{figures.duration(usage.active_seconds)} training{gpu}{restarts}"


def attempts(found: list[Attempt]) -> Table:
    """The training pods."""
    table = Table("attempt", "pod", "steps", "ended", box=None, pad_edge=False, header_style="bold")
    for attempt in found:
        steps = f"{attempt.from_step or 0:,} → {'…' if attempt.to_step is None else f'{attempt.to_step:,}'}"
        ended = attempt.reason or ("running" if attempt.finished_at is None else "ended")
        table.add_row(str(attempt.number), plain(attempt.pod or figures.MISSING), steps, plain(ended))
    return table


def conditions(found: list[Condition], now: datetime) -> Table:
    """The conditions, latest first."""
    table = Table("condition", "status", "reason", "since", "message", box=None, pad_edge=False, header_style="bold")
    table.columns[4].overflow = "fold"
    for condition in sorted(found, key=lambda each: each.last_transition_time, reverse=True):
        since = figures.duration(age_seconds(condition.last_transition_time, now))
        kind, state, reason = map(plain, (condition.type, condition.status, condition.reason))
        table.add_row(kind, state, reason, since, plain_lines(condition.message))
    return table


def age_seconds(time: str | None, now: datetime) -> float | None:
    """Seconds since an RFC 3339 time; None where there is none."""
    try:
        return (now - datetime.fromisoformat(time)).total_seconds() if time else None
    except ValueError:
        return None
