"""`finetune plan`: what a job would take with each method, as a table, before anything is fetched or held.

It decides which folder is asked about and how the answers look. The counting is done by a process of the trainer.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from finetune_api import uris
from finetune_api.exits import ExitCode
from finetune_api.job import FineTuneJob
from finetune_api.quantities import gibibytes
from finetune_api.schema import QUANTITY_PATTERN
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.spec.methods import Method
from finetune_cli.commands.validate import accepted
from finetune_cli.local.stage_process import MODULE, is_installed
from finetune_cli.manifest.validation import job
from finetune_cli.views import formatting
from finetune_cli.views.terminal import err, out

PROCESSES = 4
"""At most: each takes a gigabyte."""
METHODS = [str(field.alias) for field in Method.model_fields.values()]
PARTS = {
    "weights": ("frozenWeightsBytes", "trainableWeightsBytes"),
    "gradients": ("gradientsBytes",),
    "optimizer": ("optimizerBytes",),
    "activations": ("activationsBytes", "temporaryBytes"),
    "runtime": ("runtimeBytes",),
}
"""Columns of the table, and the parts of status.plan.memory that they add up."""


@dataclass(frozen=True)
class Options:
    """What the command line says beside the file."""

    model: Path | None
    gpu_memory: str | None
    as_json: bool


def plan_file(file: str, options: Options) -> int:
    """Print the plan of the job in `file`; returns the exit code."""
    source = accepted(file)
    if source is None:
        return int(ExitCode.BAD_SPEC)
    if options.gpu_memory is not None and not re.fullmatch(QUANTITY_PATTERN, options.gpu_memory):
        return _refuse(f"--gpu-memory {options.gpu_memory}: expected a quantity such as 24Gi")
    parsed = _with_memory(job(source), options.gpu_memory)
    folder = options.model or _local_model(parsed.spec)
    if folder is None or not (folder / "config.json").is_file():
        told = f"{folder} has no config.json" if folder else f"{parsed.spec.model.uri} is not on this machine"
        return _refuse(f"{told}: name a folder with the model's config.json, --model FOLDER (weights are not needed)")
    if not is_installed():
        return _refuse("the trainer is not installed here: pip install 'finetune-operator[trainer]'")
    return _print(parsed.spec, folder, options.as_json)


def _print(spec: FineTuneJobSpec, folder: Path, as_json: bool) -> int:
    rows = []
    with Progress(*Progress.get_default_columns(), console=err, transient=True) as progress:
        bar = progress.add_task("methods", total=len(METHODS))
        for row in answers(spec, folder):
            rows.append(row)
            progress.advance(bar)
    if len(rows) < len(METHODS):
        err.print("[red]the trainer ended before it had counted all methods; its own words are above[/red]")
        return int(ExitCode.INTERNAL)
    if as_json:
        out.file.write(json.dumps(rows, indent=1) + "\n")
    else:
        out.print(table(rows, spec.method.kind))
        for line in notes(spec, rows):
            out.print(line, style="dim", markup=False)
    return 0


def answers(spec: FineTuneJobSpec, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each method, in their order, from processes of the trainer that share the methods."""
    count = min(PROCESSES, os.cpu_count() or 1)
    with ExitStack() as stack:
        shares = [stack.enter_context(_counted(spec, folder, METHODS[first::count])) for first in range(count)]
        for lines in zip_longest(*shares):
            yield from (json.loads(line) for line in lines if line)


@contextmanager
def _counted(spec: FineTuneJobSpec, folder: Path, methods: list[str]) -> Iterator[Iterable[str]]:
    """A line for each of these methods, as one process finds them."""
    command = [sys.executable, "-m", f"{MODULE}.planning.method_comparison"]
    question = {"model": str(folder.absolute()), "spec": spec.to_wire(), "methods": methods}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question))
        process.stdin.close()
        try:
            yield process.stdout
        finally:
            process.kill()


def table(rows: list[dict[str, Any]], chosen: str) -> Table:
    """A line for each method that the model allows; `chosen` is the job's."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("method", no_wrap=True)
    for name in ("trainable", "share", *PARTS, "peak", "microBatchSize", "fits"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if "memory" in row:
            shown.add_row(*_cells(row), style="bold" if row["method"] == chosen else None)
    return shown


def notes(spec: FineTuneJobSpec, rows: list[dict[str, Any]]) -> Iterator[str]:
    """What the table leaves out: refused methods, and what was assumed."""
    for row in rows:
        if "refused" in row:
            yield f"{row['method']}: {row['refused']}"
    resources = spec.resources
    has = f"{resources.gpu_memory or 'unknown'} on the GPU" if resources.gpus else f"{resources.memory} in the pod"
    yield f"estimated for rows of {spec.training.max_length:,} tokens at most; memory: {has}"


def _cells(row: dict[str, Any]) -> list[str]:
    trainable, total = row["trainableParameters"], row["totalParameters"]
    parts = [_gibibytes(sum(row["memory"][part] for part in names)) for names in PARTS.values()]
    limit = row["limitBytes"]
    fits = formatting.MISSING if limit is None else "yes" if row["totalBytes"] <= limit else "no"
    peak = gibibytes(row["totalBytes"])
    return [
        row["method"],
        formatting.count(trainable),
        _share(trainable / total),
        *parts,
        peak,
        str(row["microBatchSize"]),
        fits,
    ]


def _gibibytes(count: int) -> str:
    return f"{count / (1 << 30):,.2f}"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _local_model(spec: FineTuneJobSpec) -> Path | None:
    place = uris.parse(spec.model.uri)
    return Path(place.path) if place.scheme == "file" else None


def _with_memory(parsed: FineTuneJob, gpu_memory: str | None) -> FineTuneJob:
    """The job on a GPU of that size, where the command line names one."""
    if gpu_memory is None:
        return parsed
    resources = parsed.spec.resources.model_copy(update={"gpus": 1, "gpu_memory": gpu_memory})
    return parsed.model_copy(update={"spec": parsed.spec.model_copy(update={"resources": resources})})


def _refuse(message: str) -> int:
    err.print(f"[red]{escape(message)}[/red]")
    return int(ExitCode.BAD_SPEC)
