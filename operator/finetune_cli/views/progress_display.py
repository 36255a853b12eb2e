"""Shows a running stage: a bar where there is a terminal, lines where there is none.

It decides what of a progress report is worth showing, and when. Time is an argument.
"""

from dataclasses import dataclass
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from finetune_api.events import ProgressReport
from finetune_cli.views import formatting
from finetune_cli.views.terminal import can_redraw

BEFORE = ("starting", "loading", "evaluating", "generating")
"""What comes before the first step and says nothing about the pace of steps."""
QUIET_SECONDS = 15
"""Without a terminal: a line at least so often while something moves …"""
QUIET_PERCENT = 10
"""… and after so much of the work."""


@dataclass
class Pace:
    """Estimates the time left from the steps that this process has done since it began to train."""

    first_step: int | None = None
    first_time: float = 0

    def seconds_left(self, report: ProgressReport, now: float) -> float | None:
        """None until a step was seen to be done."""
        if self.first_step is None and report.activity not in BEFORE:
            self.first_step, self.first_time = report.step, now
        done = report.step - (report.step if self.first_step is None else self.first_step)
        if done == 0 or report.total_steps <= 0:
            return None
        return (now - self.first_time) / done * max(0, report.total_steps - report.step)


def description(report: ProgressReport, seconds_left: float | None) -> str:
    """`12/120 · loss 2.314 · eval 2.402 · 1.2 k tokens/s · 1 m 20 s left`, or what the stage is doing."""
    parts: list[str] = [] if report.activity == "training" else [report.activity]
    if report.total_steps:
        parts.append(f"{report.step:,}/{report.total_steps:,}")
    elif report.step:
        parts.append(f"{report.step:,}")
    if report.loss is not None:
        parts.append(f"loss {formatting.loss(report.loss)}")
    if report.eval_loss is not None:
        parts.append(f"eval {formatting.loss(report.eval_loss)}")
    if report.tokens_per_second:
        parts.append(f"{formatting.count(report.tokens_per_second)} tokens/s")
    if seconds_left is not None:
        parts.append(f"{formatting.duration(seconds_left)} left")
    return " · ".join(parts)


class Display(Protocol):
    """Shows one stage while it runs."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
    def show(self, report: ProgressReport, now: float) -> None:
        """Show the latest report; `now` is in seconds of a monotonic clock."""


class Bar:
    """A bar that moves in place."""

    def __init__(self, console: Console, stage: str) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description:8}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[text]}"),
        )
        self._pace = Pace()
        self._bars = Progress(*columns, console=console, transient=True)
        self._task = self._bars.add_task(stage, total=None, text="starting")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def show(self, report: ProgressReport, now: float) -> None:
        text = description(report, self._pace.seconds_left(report, now))
        self._bars.update(self._task, total=report.total_steps or None, completed=report.step, text=text)


class Lines:
    """One line whenever there is news: for logs and pipes."""

    def __init__(self, console: Console, stage: str) -> None:
        self._console, self._stage = console, stage
        self._pace = Pace()
        self._shown: ProgressReport | None = None
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, report: ProgressReport, now: float) -> None:
        left = self._pace.seconds_left(report, now)
        if self._is_news(report, now):
            self._shown, self._shown_at = report, now
            self._console.print(f"{self._stage}: {description(report, left)}", markup=False)

    def _is_news(self, report: ProgressReport, now: float) -> bool:
        if report.activity == "done":
            return False
        if self._shown is None or report.activity != self._shown.activity or report.eval_loss != self._shown.eval_loss:
            return True
        moved = report.step - self._shown.step
        far = report.total_steps > 0 and 100 * moved >= QUIET_PERCENT * report.total_steps
        return far or (moved > 0 and now - self._shown_at >= QUIET_SECONDS)


def display(console: Console, stage: str) -> Display:
    """The display that fits the console."""
    return Bar(console, stage) if can_redraw(console) else Lines(console, stage)
