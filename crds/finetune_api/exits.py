"""The exit-code contract between trainer and operator (sysexits.h where it has a fitting code).

A code says whether another try can help. The report in the termination message says more, when it could be written.
"""

from enum import IntEnum

from finetune_api.reasons import Reason


class ExitCode(IntEnum):
    """What a trainer process ends with."""

    DONE = 0
    BAD_SPEC = 64
    BAD_DATA = 65
    MISSING_INPUT = 66
    INTERNAL = 70
    CANNOT_WRITE = 73
    STOPPED = 75
    DIVERGED = 76
    DENIED = 77
    UNSUPPORTED = 78
    KILLED = 137
    TERMINATED = 143


REASONS: dict[ExitCode, Reason] = {
    ExitCode.BAD_SPEC: Reason.BAD_SPEC,
    ExitCode.BAD_DATA: Reason.DATASET_INVALID,
    ExitCode.MISSING_INPUT: Reason.INPUT_UNAVAILABLE,
    ExitCode.INTERNAL: Reason.INTERNAL_ERROR,
    ExitCode.CANNOT_WRITE: Reason.OUTPUT_NOT_WRITABLE,
    ExitCode.STOPPED: Reason.PREEMPTED,
    ExitCode.DIVERGED: Reason.DIVERGED,
    ExitCode.DENIED: Reason.ACCESS_DENIED,
    ExitCode.UNSUPPORTED: Reason.UNSUPPORTED,
    ExitCode.KILLED: Reason.OUT_OF_MEMORY,
    ExitCode.TERMINATED: Reason.PREEMPTED,
}
"""What a code means when the process left no report."""

PERMANENT = (
    ExitCode.BAD_SPEC,
    ExitCode.BAD_DATA,
    ExitCode.MISSING_INPUT,
    ExitCode.DIVERGED,
    ExitCode.DENIED,
    ExitCode.UNSUPPORTED,
)
"""Codes after which the same run again would end the same way: the Job fails at once. 73 is not one: a full disk can
be emptied."""
