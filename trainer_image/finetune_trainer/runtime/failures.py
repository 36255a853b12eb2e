"""How a stage ends when it cannot go on: one typed exception, and the exit code that each reason means.

It decides what a failure is called and whether another try can help. A bad record ends nothing by itself. It knows
nothing of where failures come from.
"""

import errno
import os
import re

from finetune_api.exits import ExitCode
from finetune_api.reasons import Reason
from finetune_api.text import printable_lines

CODES: dict[Reason, ExitCode] = {
    Reason.BAD_SPEC: ExitCode.BAD_SPEC,
    Reason.CHECKPOINT_MISMATCH: ExitCode.BAD_SPEC,
    Reason.DATASET_INVALID: ExitCode.BAD_DATA,
    Reason.DATASET_UNAVAILABLE: ExitCode.MISSING_INPUT,
    Reason.MODEL_UNAVAILABLE: ExitCode.MISSING_INPUT,
    Reason.MODEL_INVALID: ExitCode.MISSING_INPUT,
    Reason.INPUT_UNAVAILABLE: ExitCode.MISSING_INPUT,
    Reason.INTERNAL_ERROR: ExitCode.INTERNAL,
    Reason.OUTPUT_NOT_WRITABLE: ExitCode.CANNOT_WRITE,
    Reason.ARTIFACT_PUSH_FAILED: ExitCode.CANNOT_WRITE,
    Reason.ARTIFACT_INVALID: ExitCode.CANNOT_WRITE,
    Reason.PREEMPTED: ExitCode.STOPPED,
    Reason.DIVERGED: ExitCode.DIVERGED,
    Reason.ACCESS_DENIED: ExitCode.DENIED,
    Reason.UNSUPPORTED: ExitCode.UNSUPPORTED,
    Reason.GPU_UNAVAILABLE: ExitCode.INTERNAL,  # the next try may get a node whose driver works
    Reason.OUT_OF_MEMORY: ExitCode.KILLED,
}
"""The exit code of each reason that a stage can end with."""

IN_WORDS = re.compile(r"\(os error (\d+)\)(?: at path \"([^\"]+)\")?")
"""How libraries in Rust (safetensors, tokenizers) tell an error of the system, in exceptions of their own."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""OSError numbers of a disk or quota that is full."""


class Failure(Exception):
    """A failure that has a name. Its message is for the user: field, file and line, and what to do next.

    `transient` failures (no network, a busy server) end with a code that allows another try, whatever their reason.
    """

    def __init__(self, reason: Reason, message: str, *, transient: bool = False) -> None:
        self.reason = reason
        self.message = printable_lines(message)  # it quotes files, servers and names that others chose
        super().__init__(self.message)
        self.transient = transient
        self.code = ExitCode.INTERNAL if transient else CODES[reason]


def as_os_error(error: BaseException) -> OSError | None:
    """`error` as the OSError that it is or tells of; None for anything else."""
    if isinstance(error, OSError | Failure):
        return error if isinstance(error, OSError) else None
    found = IN_WORDS.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])), found[2]) if found else None


def classified(error: BaseException) -> Failure:
    """The failure that `error` is; what nobody foresaw becomes InternalError."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        return Failure(Reason.OUT_OF_MEMORY, f"out of memory: {error}" if str(error) else "out of memory")
    if isinstance(error, KeyboardInterrupt):
        return Failure(Reason.PREEMPTED, "stopped by the user; the same command goes on from here")
    if (trouble := as_os_error(error)) is not None and trouble.errno in FULL:
        place = trouble.filename2 or trouble.filename or "the workspace"  # of a copy the second name is the new file's
        message = f"no space left for {place}: make room, or raise resources.workspace.size"
        return Failure(Reason.OUTPUT_NOT_WRITABLE, message)
    return Failure(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")


class BadRecordError(Exception):
    """What is wrong with one record, in words for its owner."""
