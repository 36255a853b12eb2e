"""`finetune watch`: the table of jobs. Pure: from objects of the API server to what rich can print."""

from dataclasses import replace
from datetime import datetime

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_api.text import printable
from finetune_cli.stored import StoredJob
from finetune_cli.views import formatting
from finetune_cli.views.description import age_seconds, phase, progress_line, trouble
from finetune_cli.views.terminal import plain

BAR_WIDTH = 20


def table(jobs: list[StoredJob], now: datetime, all_namespaces: bool = False) -> Table:
    """One line a job: running ones first, then by name."""
    names = ("name", "phase", "progress", "", "loss", "tokens/s", "left", "age")
    found = Table(*(("namespace",) if all_namespaces else ()), *names, box=None, pad_edge=False, header_style="bold")
    for job in sorted(jobs, key=lambda each: (each.has_ended, each.metadata.namespace, each.metadata.name)):
        progress = job.status.progress
        percent = progress.percent if progress is not None else None
        cells = [
            plain(job.metadata.name, "bold"),
            phase(job.status.phase, trouble(job.status)),
            Text("") if percent is None else ProgressBar(total=100, completed=percent, width=BAR_WIDTH),
            formatting.MISSING if percent is None else f"{percent} %",
            formatting.loss(progress.loss if progress else None),
            formatting.count(progress.tokens_per_second if progress else None),
            formatting.duration(progress.eta_seconds if progress else None),
            formatting.duration(age_seconds(job.metadata.creation_timestamp, now)),
        ]
        found.add_row(*([plain(job.metadata.namespace)] if all_namespaces else []), *cells)
    return found


def line(job: StoredJob) -> str:
    """The same for one job, without a terminal: `bot: Training, train, 12/120 (10 %), loss 2.314`."""
    progress = job.status.progress
    details = progress_line(progress) if progress is not None and not job.has_ended else ""
    parts = (f"{job.metadata.name}: {job.status.phase or 'Unseen'}", trouble(job.status), details)
    return printable(", ".join(part for part in parts if part))


def news(job: StoredJob) -> str:
    """The part of `line` that is worth a line of its own when it changes: all but the time left, which always does."""
    progress = job.status.progress
    if progress is None:
        return line(job)
    timeless = job.status.model_copy(update={"progress": progress.model_copy(update={"eta_seconds": None})})
    return line(replace(job, status=timeless))
