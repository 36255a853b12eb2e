"""The two streams that people read: results on standard output, everything else on standard error."""

import sys

from rich.console import Console

PIPE_WIDTH = 160
"""Columns where no terminal sets a width: tables in a log must not break at 80."""

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else PIPE_WIDTH)


def can_redraw(console: Console) -> bool:
    """Whether what is shown can be replaced: not in a pipe, nor on a terminal that only prints (TERM=dumb)."""
    return console.is_terminal and not console.is_dumb_terminal
