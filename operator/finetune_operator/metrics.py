"""What Prometheus reads: jobs by phase, how reconciling goes, and for each live job its progress.

Series with a job's name exist while the job is live, and not longer.
"""

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram, generate_latest

from finetune_api.events import ProgressReport
from finetune_api.stages import TRAIN, StageName
from finetune_api.status import FineTuneJobStatus

Key = tuple[str, str]
"""Namespace and name of a FineTuneJob."""

PER_JOB = ("namespace", "name")
MINUTES = (5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600)

jobs = Gauge("finetune_jobs", "FineTuneJobs by phase", ["phase"])
stage_seconds = Histogram(
    "finetune_stage_duration_seconds", "How long a stage's last pod ran", ["stage"], buckets=MINUTES
)
reconcile_seconds = Histogram("finetune_reconcile_duration_seconds", "How long one reconcile took")
reconcile_errors = Counter("finetune_reconcile_errors", "Reconciles that failed and are tried again")
queue_depth = Gauge("finetune_queue_depth", "Jobs that wait for a worker")
leading = Gauge("finetune_leading", "1 while this replica leads")
gpu_seconds = Counter("finetune_gpu_seconds", "GPU-seconds of ended attempts")
wasted_gpu_seconds = Counter("finetune_wasted_gpu_seconds", "GPU-seconds whose steps were lost")
progress_failures = Counter("finetune_progress_failures", "Progress pages that could not be used", ["problem"])

_progress = Gauge("finetune_job_progress_ratio", "Steps done of all", PER_JOB)
_step = Gauge("finetune_job_step", "Optimizer steps done", PER_JOB)
_loss = Gauge("finetune_job_loss", "Training loss", PER_JOB)
_eval_loss = Gauge("finetune_job_eval_loss", "Validation loss", PER_JOB)
_tokens = Gauge("finetune_job_tokens_per_second", "Tokens, padding excluded", PER_JOB)
_eta = Gauge("finetune_job_eta_seconds", "Seconds to the end", PER_JOB)
_SERIES = (_progress, _step, _loss, _eval_loss, _tokens, _eta)

_phases: dict[Key, str] = {}


def page() -> bytes:
    """The text that Prometheus scrapes."""
    return generate_latest()


def watch_queue(depth: Callable[[], float]) -> None:
    queue_depth.set_function(depth)


def note_status(key: Key, before: FineTuneJobStatus, after: FineTuneJobStatus) -> None:
    """Count the job under its phase, and what its ended attempts used."""
    phase = after.phase or "Waiting"
    old = _phases.get(key)
    if phase != old:
        if old is not None:
            jobs.labels(old).dec()
        jobs.labels(phase).inc()
        _phases[key] = phase
    if after.usage is not None:
        spent = after.usage.gpu_seconds - (before.usage.gpu_seconds if before.usage else 0)
        wasted = after.usage.wasted_gpu_seconds - (before.usage.wasted_gpu_seconds if before.usage else 0)
        gpu_seconds.inc(max(0, spent))
        wasted_gpu_seconds.inc(max(0, wasted))


def note_stage(stage: StageName, seconds: float) -> None:
    stage_seconds.labels(stage).observe(seconds)


def note_progress(key: Key, report: ProgressReport, eta_seconds: int | None) -> None:
    """Show a training pod's page."""
    if report.stage != TRAIN:
        return
    _step.labels(*key).set(report.step)
    if report.total_steps:
        _progress.labels(*key).set(report.step / report.total_steps)
    shown = (
        (_loss, report.loss),
        (_eval_loss, report.eval_loss),
        (_tokens, report.tokens_per_second),
        (_eta, eta_seconds),
    )
    for series, value in shown:
        if value is not None:
            series.labels(*key).set(value)


def drop_progress(key: Key) -> None:
    """The job no longer trains: its series go."""
    for series in _SERIES:
        series.remove_by_labels(dict(zip(PER_JOB, key, strict=True)))


def forget(key: Key) -> None:
    """The job is deleted."""
    drop_progress(key)
    if (phase := _phases.pop(key, None)) is not None:
        jobs.labels(phase).dec()
