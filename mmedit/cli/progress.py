"""The progress of long work: bars in a terminal, and plain lines in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from mmedit.progress import Progress

PERIOD = 10.0
"""Seconds between two lines of one task, at least."""
Clock = Callable[[], float]
"""Returns the time in seconds."""


@dataclass(frozen=True)
class Pace:
    """How fast one task goes, counted from its first report."""

    begun: float
    """Time of the first report, in seconds."""
    at_first: int
    """Number of items that were done at the first report: 0 unless the task was resumed."""
    now: float
    """Time of the latest report, in seconds."""
    done: int
    total: int
    """Number of items in all; 0 if it is unknown."""

    def then(self, done: int, total: int, now: float) -> Pace:
        """Return the pace after another report."""
        return replace(self, now=now, done=done, total=total)

    @property
    def seconds(self) -> float:
        """Seconds since the first report."""
        return self.now - self.begun

    @property
    def rate(self) -> float | None:
        """Items per second; None before anything was done."""
        made = self.done - self.at_first
        return made / self.seconds if made > 0 and self.seconds > 0 else None

    @property
    def is_finished(self) -> bool:
        """Whether all items are done."""
        return 0 < self.total <= self.done

    def __str__(self) -> str:
        """Return rate and time left, for example "2.3/s, 0:00:35 left"."""
        if self.rate is None:
            return ""
        rate = f"{self.rate:.1f}/s" if self.rate >= 1 else f"{1 / self.rate:.1f} s each"
        if self.is_finished:
            return f"{rate}, took {_clock_face(self.seconds)}"
        if not self.total:
            return rate
        return f"{rate}, {_clock_face((self.total - self.done) / self.rate)} left"


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
        pace = _followed(previous, done, total, self.get_time())
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
        pace = latest[task] = _followed(latest.get(task), done, total, clock())
        last = printed.get(task)
        if last is None or _is_new(pace, last) or pace.now - last.now >= PERIOD:
            printed[task] = pace
            count = f"{task}: {done:,}/{total:,}" if total else f"{task}: {done:,}"
            parts = [part for part in (count, str(pace), figures) if part]
            console.print(", ".join(parts), markup=False, soft_wrap=True)

    return show


def _followed(previous: Pace | None, done: int, total: int, now: float) -> Pace:
    """Return the pace after a report. A count that falls begins the task anew."""
    if previous is None or done < previous.done:
        return Pace(begun=now, at_first=done, now=now, done=done, total=total)
    return previous.then(done, total, now)


def _clock_face(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
