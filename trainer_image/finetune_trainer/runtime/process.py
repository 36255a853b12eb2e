"""What every stage has around it: the run file, logging, the progress page, signals, and one way to end.

It decides how an ending becomes an exit code and a termination message. It knows no stage.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from finetune_api import labels
from finetune_api.events import TERMINATION_LIMIT, StageReport
from finetune_api.exits import ExitCode
from finetune_api.reasons import Reason
from finetune_api.run import ChangedError, Run, read_run
from finetune_api.stages import TRAIN, StageName
from finetune_api.text import printable_lines
from finetune_trainer.runtime import volumes
from finetune_trainer.runtime.failures import Failure, as_os_error, classified
from finetune_trainer.runtime.files import write_file
from finetune_trainer.runtime.progress import ALL_INTERFACES, Progress, serve
from finetune_trainer.runtime.workspace import Workspace

log = logging.getLogger(__name__)

StageFunction = Callable[[Run, Workspace, Progress], StageReport]
"""A stage: does its work, or raises Failure."""
MESSAGE_LIMIT = 2048
"""Characters of a report's message."""
WORD_LIMIT = 256
"""Characters that every text of a report may have."""


def run_stage(
    stage: StageName,
    load: Callable[[Run], StageFunction],
    run_file: Path,
    port: int,
    termination_log: Path | None,
    host: str = ALL_INTERFACES,
) -> int:
    """Run a stage to its end and leave its report; returns the exit code. `load` imports its code."""
    log_to_stderr(stage)
    progress = Progress(stage)
    server = serve(progress, port, host)
    signal.signal(signal.SIGTERM, _stop)  # process 1 of a container has no default action
    workspace: Workspace | None = None
    run: Run | None = None
    try:
        run = _run(run_file)
        workspace = _workspace(run)
        ending, code = load(run)(run, workspace, progress), ExitCode.DONE
    except BaseException as error:
        ending, code = _ending(stage, error, run)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the report is written first
    progress.update(activity="done")
    if stage == TRAIN:
        ending = ending.model_copy(update={"progress": progress.snapshot()})
    _leave(readable(ending), workspace, termination_log)
    if server is not None:
        server.close()
    return int(code)


class Lines(logging.Formatter):
    """Formats a record so that what it quotes neither acts on a terminal nor looks like another record: the lines of
    a message or traceback after its first are indented, and control characters are shown as escapes."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _indented(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return _indented(super().formatException(ei))


def _indented(text: str) -> str:
    return printable_lines(text).replace("\n", "\n    ")


class Printable:
    """A stream as which a library, whatever it prints by, can reach a log or terminal with readable text alone.

    Where the stream is a terminal, a "\\r" that begins or ends what is written stays: progress bars are drawn by it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        before, after = "", ""
        if self._stream.isatty():
            before, after = "\r" * text.startswith("\r"), "\r" * (len(text) > 1 and text.endswith("\r"))
        middle = text[len(before) : len(text) - len(after)]
        self._stream.write(f"{before}{printable_lines(middle)}{after}")
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


def print_readably() -> None:
    """Let nothing that this process prints act on a terminal: libraries warn of models and servers in their words.
    To be called before they are imported, for their loggers keep the stream of that moment."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Printable):
            setattr(sys, name, Printable(stream))


def log_to_stderr(who: str) -> None:
    """Send every log of this process to standard error, each record with `who`."""
    print_readably()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(f"%(asctime)s {who}: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def readable(ending: StageReport) -> StageReport:
    """The report as it may be shown: samples, labels and messages come from data, models and servers."""
    return StageReport.model_validate(_readable(ending.to_wire()))


def _readable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if not isinstance(value, str):
        return value
    return printable_lines(value)[: max(len(value), WORD_LIMIT)]  # escapes must not outgrow what a report may hold


def encoded(ending: StageReport, limit: int = TERMINATION_LIMIT) -> bytes:
    """The report as JSON of at most `limit` bytes: samples go first, then the end of the message."""
    body = _json(ending)
    if len(body) > limit and ending.evaluation is not None:
        ending = ending.model_copy(update={"evaluation": ending.evaluation.model_copy(update={"samples": []})})
        body = _json(ending)
    while len(body) > limit and ending.message:
        ending = ending.model_copy(update={"message": _cut(ending.message, len(ending.message) * 3 // 4)})
        body = _json(ending)
    return body


def bounded(message: str) -> str:
    """`message` as a report can carry it."""
    return message if len(message) <= MESSAGE_LIMIT else _cut(message, MESSAGE_LIMIT)


def _cut(message: str, length: int) -> str:
    return message[: max(length - 2, 0)].rstrip(" …") + " …" if length > 2 else ""


def _json(ending: StageReport) -> bytes:
    return json.dumps(ending.to_wire(), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _run(run_file: Path) -> Run:
    environment = [os.environ.get(name, "") for name in (labels.RUN_DIGEST_VARIABLE, labels.MEMORY_VARIABLE)]
    try:
        return read_run(run_file, *environment)
    except ChangedError as error:
        raise Failure(Reason.RUN_CHANGED, f"{error}: nothing is done with it", transient=True) from None
    except OSError as error:
        raise Failure(Reason.BAD_SPEC, f"cannot read the run file {run_file}: {error.strerror}") from None
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()[:5]
        )
        raise Failure(Reason.BAD_SPEC, f"{run_file}: {found}") from None


def _workspace(run: Run) -> Workspace:
    workspace = Workspace(Path(run.workspace).absolute())
    try:
        workspace.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = volumes.explained(error, workspace.root)
        raise Failure(Reason.OUTPUT_NOT_WRITABLE, f"cannot make the workspace: {why}") from None
    return workspace


def _ending(stage: StageName, error: BaseException, run: Run | None) -> tuple[StageReport, ExitCode]:
    trouble = as_os_error(error)
    named = volumes.told(run, trouble) if run is not None and trouble is not None else None
    failure = named or classified(error)
    if failure.reason is Reason.INTERNAL_ERROR and failure is not error:
        log.error("unexpected: please report this", exc_info=error)
    else:
        log.error("%s: %s", failure.reason.value, failure.message)
    return StageReport(stage=stage, reason=failure.reason, message=bounded(failure.message)), failure.code


def _leave(ending: StageReport, workspace: Workspace | None, termination_log: Path | None) -> None:
    """Write the report where the operator (or the command line) looks for it; a failure to costs no exit code."""
    try:
        if termination_log is not None:
            termination_log.write_bytes(encoded(ending))  # a mount point: it cannot be replaced by a rename
    except OSError as error:
        log.warning("no termination message at %s: %s", termination_log, error.strerror)
    try:
        if workspace is not None:
            write_file(workspace.report(ending.stage), _json(ending))
    except OSError as error:
        log.warning("no report on the workspace: %s", error.strerror)


def _stop(signal_number: int, frame: Any) -> None:
    raise Failure(Reason.PREEMPTED, "asked to stop (SIGTERM): the stage is done again from its start")
