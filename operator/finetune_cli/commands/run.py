"""`finetune run`: prepare, train and publish as processes of this machine, one after the other, without a cluster.

It decides the order, what an interruption and a failure look like, and what is not done again. Exit codes: 0 done, 130
interrupted (the same command resumes), 64 wrong job or options, else that of the stage that failed.
"""

import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from rich.markup import escape

from finetune_api.events import StageReport
from finetune_api.exits import REASONS, ExitCode
from finetune_api.job import FineTuneJob
from finetune_api.reasons import Reason
from finetune_api.run import Downloads, Run
from finetune_api.stages import PUBLISH, TRAIN, StageName
from finetune_cli.commands.validate import accepted
from finetune_cli.local.mounts import MountError, mounts
from finetune_cli.local.stage_process import StageProcess, is_installed
from finetune_cli.local.workspace import FOLDER, Workspace, WorkspaceError
from finetune_cli.manifest.document import Document
from finetune_cli.manifest.validation import job
from finetune_cli.views import formatting, summary
from finetune_cli.views.progress_display import display
from finetune_cli.views.terminal import err, out, plain

STAGES: tuple[StageName, ...] = get_args(StageName)
INTERRUPTED = 128 + signal.SIGINT
GPU_FILES = ("nvidiactl", "kfd", "dxg")
"""Device files of NVIDIA's and AMD's drivers, and of Windows' Linux."""
UNBOUNDED = 10**9
"""GB of a download, and seconds: no person waits for as much."""
LAST_LINES = 15
"""Lines of a stage's log that are shown when nobody foresaw its failure."""

AGAIN = "run the same command again"
NEXT_HERE: dict[Reason, str] = {
    Reason.PREEMPTED: f"To resume from the last checkpoint, {AGAIN}.",
    Reason.BAD_SPEC: f"Correct that field and {AGAIN}, with --fresh.",
    Reason.UNSUPPORTED: f"Choose a model, objective or method that the message offers, and {AGAIN}, with --fresh.",
    Reason.DATASET_INVALID: f"Correct the records and {AGAIN}.",
    Reason.DATASET_UNAVAILABLE: f"Check dataset URI, path and access (--volume says where it lies), and {AGAIN}.",
    Reason.MODEL_UNAVAILABLE: f"Check spec.model.uri, its revision and access, and {AGAIN}.",
    Reason.MODEL_INVALID: f"Put config.json, a tokenizer and *.safetensors there, and {AGAIN}.",
    Reason.INPUT_UNAVAILABLE: f"Check the URIs that the job names (--volume says where they lie), and {AGAIN}.",
    Reason.ACCESS_DENIED: f"Put a valid `token` into the folder that stands for the Secret, and {AGAIN}.",
    Reason.CHECKPOINT_MISMATCH: "The workspace holds another run: --fresh begins anew.",
    Reason.GPU_UNAVAILABLE: f"Check this machine's driver, or set spec.resources.gpus to 0, and {AGAIN}.",
    Reason.OUT_OF_MEMORY: f"Raise spec.resources.memory or lower training.microBatchSize, and {AGAIN}, with --fresh.",
    Reason.DIVERGED: f"Lower training.learningRate or raise warmupRatio, and {AGAIN}, with --fresh.",
    Reason.OUTPUT_NOT_WRITABLE: f"Make room or grant access where the message says, and {AGAIN}.",
    Reason.ARTIFACT_PUSH_FAILED: f"The trained weights are kept: check output.uri and its access, and {AGAIN}.",
    Reason.ARTIFACT_INVALID: f"What was read back is not what was written: mend that storage, and {AGAIN}.",
    Reason.INTERNAL_ERROR: "This is a defect of the trainer: please report it with that log.",
}
"""What a person can do on their own machine, where nothing is applied and no spec.restarts is looked at."""


@dataclass(frozen=True)
class Options:
    """What the command line says beside the file."""

    workspace: Path | None
    folders: dict[str, str]
    """From `pvc://claim` and the like to folders."""
    fresh: bool
    downloads: Downloads


def downloads(allow: list[str]) -> Downloads:
    """What `https://` sources may be here. Raises ValueError for an entry that is neither host nor network.

    A job's file may come from others: it reaches this machine and its network only if the person says so. Of size and
    time the person is the judge, who sees both.
    """
    try:
        return Downloads(allow=allow, max_bytes=UNBOUNDED * 10**9, timeout_seconds=UNBOUNDED)
    except ValidationError as error:
        raise ValueError(f"--download-allow {error.errors()[0]['ctx']['error']}") from None


def run_file(file: str, options: Options) -> int:
    """Run the job in `file`; returns the exit code."""
    source = accepted(file)
    if source is None:
        return int(ExitCode.BAD_SPEC)
    parsed = job(source)
    try:
        mounted = mounts(parsed.spec, options.folders)
    except MountError as error:
        return _refuse(f"{_where(source, error.path)}{error}")
    if not is_installed():
        return _refuse("the trainer is not installed here: pip install 'finetune-operator[trainer]'")
    try:
        return _run(parsed, mounted, options)
    except WorkspaceError as error:
        return _refuse(str(error))


def _where(source: Document, path: str) -> str:
    """`file:line: spec.model.uri: ` for a field, nothing for an option."""
    if not path:
        return ""
    route = tuple(int(part) if part.isdigit() else part for part in path.replace("[", ".").replace("]", "").split("."))
    return f"{source.file}:{source.line(route)}: {path}: "


def _refuse(message: str) -> int:
    err.print(f"[red]{escape(message)}[/red]")
    return int(ExitCode.BAD_SPEC)


def _run(parsed: FineTuneJob, mounted: dict[str, str], options: Options) -> int:
    workspace = Workspace(options.workspace or Path(FOLDER) / parsed.metadata.name)
    lock = workspace.acquire()
    try:
        if options.fresh:
            workspace.clear()
        run = workspace.freeze_run(_for_this_machine(parsed), mounted, options.downloads)
        with _signals_interrupt():
            return _stages(run, workspace, lock)
    finally:
        os.close(lock)


def _for_this_machine(parsed: FineTuneJob, devices: Path = Path("/dev")) -> FineTuneJob:
    """The same job without GPUs where the machine has none: it then prepares its data for the CPU too."""
    if not parsed.spec.resources.gpus or any((devices / name).exists() for name in GPU_FILES):
        return parsed
    err.print("[yellow]no GPU on this machine[/yellow]: training on the CPU (spec.resources.gpus: 0 says so for good)")
    resources = parsed.spec.resources.model_copy(update={"gpus": 0})
    return parsed.model_copy(update={"spec": parsed.spec.model_copy(update={"resources": resources})})


def _stages(run: Run, workspace: Workspace, lock: int) -> int:
    out.print(f"[bold]{run.name}[/bold]  [dim]workspace {escape(str(workspace.root))}[/dim]")
    begun = time.monotonic()
    for stage in STAGES:
        known = workspace.report(stage)
        if known is not None and known.reason is None:
            out.print(f"[green]✓[/green] {stage:8} [dim]done before[/dim]")
            continue
        code = _stage(stage, workspace, lock)
        if code:
            return code
    _conclude(run, workspace, time.monotonic() - begun)
    return 0


def _stage(stage: StageName, workspace: Workspace, lock: int) -> int:
    workspace.forget(stage)
    begun = time.monotonic()
    process = StageProcess(stage, workspace.run_file, workspace.log(stage), lock)
    try:
        with display(out, stage) as shown:
            for progress in process.progress():
                shown.show(progress, time.monotonic())
        code = process.exit_code()
    except KeyboardInterrupt:
        return _interrupted(process, workspace)
    finally:
        process.kill()
    report = workspace.report(stage)
    if code or report is None or report.reason is not None:
        return _failed(stage, code, report, workspace)
    out.print(f"[green]✓[/green] {stage:8} [dim]{formatting.duration(time.monotonic() - begun)}[/dim]")
    for line in _outcome(report):
        out.print(plain(f"           {line}", "dim"))
    return 0


def _outcome(report: StageReport) -> Iterator[str]:
    """What a stage has to say for itself; publish only repeats."""
    if report.stage == PUBLISH:
        return
    if report.data is not None:
        yield summary.data_line(report.data)
    if report.plan is not None:
        yield summary.plan_line(report.plan)
    if report.progress is not None and report.progress.loss is not None:
        yield f"{report.progress.step:,} steps, last training loss {formatting.loss(report.progress.loss)}"


def _interrupted(process: StageProcess, workspace: Workspace) -> int:
    """Ctrl-C: ask the stage to save what it has; a second Ctrl-C does not wait for it."""
    out.print(f"stopping {process.stage}: it saves its work first (Ctrl-C again stops it at once)")
    process.stop()
    try:
        process.exit_code()
    except KeyboardInterrupt:
        process.kill()
        out.print("[yellow]stopped at once[/yellow]: run the same command again to resume from the last checkpoint")
        return INTERRUPTED
    report = workspace.report(process.stage)
    said = f" ({report.message})" if report is not None and report.message else ""
    out.print(f"[yellow]stopped[/yellow]{escape(said)}: run the same command again to resume")
    return INTERRUPTED


def _failed(stage: StageName, code: int, report: StageReport | None, workspace: Workspace) -> int:
    reason = report.reason if report is not None else None
    if reason is None:
        known = code in list(ExitCode) and ExitCode(code) in REASONS
        reason = REASONS[ExitCode(code)] if known else Reason.INTERNAL_ERROR
    message = report.message if report is not None else f"the process ended with code {code} and left no report"
    err.print(summary.failure(f"{stage} failed: {reason}", message, reason, steps=NEXT_HERE))
    log = workspace.log(stage)
    if reason is Reason.INTERNAL_ERROR:
        err.print(f"  [dim]the last lines of {escape(str(log))}:[/dim]")
        for line in _tail(log):
            err.print(plain(f"    {line}", "dim"))
    else:
        err.print(f"  [dim]log: {escape(str(log))}[/dim]")
    return code or int(ExitCode.INTERNAL)


def _tail(log: Path) -> list[str]:
    with suppress(OSError):
        return log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return []


def _conclude(run: Run, workspace: Workspace, seconds: float) -> None:
    """What came out, and what to do with it."""
    trained, published = workspace.report(TRAIN), workspace.report(PUBLISH)
    out.print(f"\n[bold green]Succeeded[/bold green] [dim]after {formatting.duration(seconds)}[/dim]")
    evaluation = trained.evaluation if trained else None
    if evaluation is not None:
        out.print(summary.indented(summary.results(evaluation)))
        for sample in evaluation.samples[:1]:
            out.print(summary.indented(summary.answers(sample)))
    if published is not None and published.artifact is not None:
        out.print(summary.indented(summary.artifact_lines(published.artifact)))
    folder = str(run.locate(run.spec.output.uri))
    out.print(f"\nNext:  ls {escape(shlex.quote(folder))}  [dim]# README.md is the model card[/dim]")
    out.print("       the same command with --fresh  [dim]# train it anew[/dim]")


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """A terminal that closes and a polite kill are an interruption like Ctrl-C: the stage saves its work."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    caught = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
