"""The two streams that people read: results on standard output, everything else on standard error.

What clusters, pods and files say is shown and never obeyed: `plain` makes it text without markup, and whatever a screen
prints has lost its control characters.
"""

import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from finetune_api.text import printable, printable_lines

PIPE_WIDTH = 160
"""Columns where no terminal sets a width: tables in a log must not break at 80."""


class Screen(Console):
    """A console whose only control sequences are its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable_lines(segment.text), segment.style)


out = Screen(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = Screen(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else PIPE_WIDTH)


def plain(text: str, style: str = "") -> Text:
    """What somebody else wrote, on one line."""
    return Text(printable(text), style)


def plain_lines(text: str, indent: str = "") -> Text:
    """The same in its own lines; those after the first are indented, so that none can pose as a line of ours."""
    return Text(printable_lines(text).replace("\n", f"\n{indent}"))


def can_redraw(console: Console) -> bool:
    """Whether what is shown can be replaced: not in a pipe, nor on a terminal that only prints (TERM=dumb)."""
    return console.is_terminal and not console.is_dumb_terminal
