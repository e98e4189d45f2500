"""The progress of long work: bars in a terminal, and plain lines in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from mmedit.progress import Clock, Pace, Progress, followed

PERIOD = 10.0
"""Seconds between two lines of one task, at least."""


@contextmanager
def show_progress(console: Console, *, clock: Clock = time.monotonic) -> Iterator[Progress]:
    """Show every task that is reported: done and total, rate, time left, and the latest figures.

    A terminal shows bars. A file or a pipe gets a line when a task begins, when it ends, and at
    most every `PERIOD` seconds between. The first report of a task is its beginning, so that rate
    and time left count what was done since then.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        yield _lines(console, clock)
        return
    bars = _Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
        console=console,
        get_time=clock,
    )
    with bars:
        yield bars.show


@contextmanager
def show_status(console: Console, text: str) -> Iterator[None]:
    """Show that something goes on: a spinner in a terminal, a line in a file or a pipe."""
    if console.is_terminal and not console.is_dumb_terminal:
        with console.status(Text(text)):
            yield
    else:
        console.print(text, markup=False, soft_wrap=True)
        yield


class _Bars(rich.progress.Progress):
    """A bar for each task, and the latest figures below."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.figures:
            yield Text(self.figures, style="dim")

    def show(self, task: str, done: int, total: int, figures: str) -> None:
        """Move the bar of a task: a `Progress`."""
        rows = {row.description: row for row in self.tasks}
        previous: Pace | None = rows[task].fields["latest"] if task in rows else None
        pace = followed(previous, done, total, self.get_time())
        row: TaskID = rows[task].id if task in rows else self.add_task(task, pace="", latest=pace)
        self.figures = figures
        self.update(row, completed=done, total=total or None, pace=str(pace), latest=pace)


def _is_new(pace: Pace, last: Pace) -> bool:
    return last.begun != pace.begun or pace.is_finished != last.is_finished


def _lines(console: Console, clock: Clock) -> Progress:
    """Make a `Progress` that prints plain lines."""
    latest: dict[str, Pace] = {}
    printed: dict[str, Pace] = {}

    def show(task: str, done: int, total: int, figures: str) -> None:
        pace = latest[task] = followed(latest.get(task), done, total, clock())
        last = printed.get(task)
        if last is None or _is_new(pace, last) or pace.now - last.now >= PERIOD:
            printed[task] = pace
            parts = [part for part in (f"{task}: {pace.count}", str(pace), figures) if part]
            console.print(", ".join(parts), markup=False, soft_wrap=True)

    return show
