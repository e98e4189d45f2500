"""How long work tells how far it is: every function that takes minutes calls a `Progress`.

Functions of the public interface that are given none show bars in a Jupyter notebook, and nothing
elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from html import escape
from typing import Any, TypeVar

Progress = Callable[[str, int, int, str], None]
"""Called with the task, how much of it is done, how much there is in all, and the latest figures to
show, for instance the loss of a training step ("" if there are none). The first call for a task is
its beginning: it gives what is done already, so 0 unless the task is resumed. Rates count from it.
"""
Clock = Callable[[], float]
"""Returns the time in seconds."""
Item = TypeVar("Item")
REFRESH = 0.2
"""Seconds between two changes of the bars in a notebook, at least."""


def silent(task: str, done: int, total: int, figures: str) -> None:
    """Show nothing."""


def named(progress: Progress, task: str) -> Progress:
    """Report everything under one name, for instance "fitting MEND" for an editor's training."""
    return lambda _, done, total, figures: progress(task, done, total, figures)


def counted(items: Iterable[Item], task: str, total: int, progress: Progress) -> Iterator[Item]:
    """Yield the items, and report how many there were."""
    progress(task, 0, total, "")
    for done, item in enumerate(items, start=1):
        progress(task, done, total, "")
        yield item


def by_itself(*, delay: float = 0.0) -> Progress:
    """Return bars in a Jupyter notebook, and `silent` elsewhere: for callers who gave no progress.

    Tasks that end within `delay` seconds are not shown.
    """
    return NotebookBars(delay=delay).show if in_notebook() else silent


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    kernel = sys.modules.get("ipykernel.zmqshell")  # a kernel has imported it
    return kernel is not None and kernel.ZMQInteractiveShell.initialized()


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

    @property
    def count(self) -> str:
        """The number of items done and in all, for example "12/100"."""
        return f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"

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


def followed(previous: Pace | None, done: int, total: int, now: float) -> Pace:
    """Return the pace after a report. A count that falls begins the task anew."""
    if previous is None or done < previous.done:
        return Pace(begun=now, at_first=done, now=now, done=done, total=total)
    return previous.then(done, total, now)


class NotebookBars:
    """Bars below a cell of a notebook: one for each task, and the latest figures below them.

    Only IPython is needed, which every kernel has. What the bars show last is saved with the
    notebook.
    """

    def __init__(self, *, delay: float = 0.0, clock: Clock = time.monotonic) -> None:
        self._delay, self._clock = delay, clock
        self._tasks: dict[str, Pace] = {}
        self._figures = ""
        self._display: Any = None
        """IPython's handle of the bars; None before they are shown."""
        self._shown_at = 0.0

    def show(self, task: str, done: int, total: int, figures: str) -> None:
        """Move the bar of a task: a `Progress`."""
        now, last = self._clock(), self._tasks.get(task)
        pace = followed(last, done, total, now)
        others = [one for name, one in self._tasks.items() if name != task]
        again = last is not None and last.begun != pace.begun
        if again and all(one.is_finished for one in others):
            self._tasks, self._display = {}, None  # the work is repeated, maybe in another cell
        self._tasks[task], self._figures = pace, figures
        is_turn = last is None or again or pace.is_finished != last.is_finished
        if self._display is None:
            if self._delay <= now - min(one.begun for one in self._tasks.values()):
                self._open(now)
        elif is_turn or now - self._shown_at >= REFRESH:
            self._display.update(self._bundle(), raw=True)
            self._shown_at = now

    def _open(self, now: float) -> None:
        from IPython.display import display

        self._display = display(self._bundle(), raw=True, display_id=True)
        self._shown_at = now

    def _bundle(self) -> dict[str, str]:
        """Return the bars as HTML and, for what shows no HTML, as plain text."""
        rows = [(task, pace, f"{pace.count} {pace}".strip()) for task, pace in self._tasks.items()]
        plain = [f"{task}: {text}" for task, _, text in rows]
        html = [
            f"<tr><td>{escape(task)}</td><td>{_bar(pace)}</td><td>{text}</td></tr>"
            for task, pace, text in rows
        ]
        shown = [self._figures] * bool(self._figures)
        below = [f"<div><small>{escape(figures)}</small></div>" for figures in shown]
        return {
            "text/plain": "\n".join([*plain, *shown]),
            "text/html": "".join(["<table>", *html, "</table>", *below]),
        }


def _bar(pace: Pace) -> str:
    if not pace.total:
        return "<progress></progress>"
    return f'<progress value="{pace.done}" max="{pace.total}"></progress>'


def _clock_face(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
