"""How results look in a terminal: what the command line prints, and its progress bars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mmedit.progress import Progress

if TYPE_CHECKING:  # adapters import torch, and `mmedit table` does without
    pass


class _Bars(rich.progress.Progress):
    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.figures:
            yield Text(self.figures, style="dim")


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """A bar for everything that reports: done/total, rate, time passed and left; below, the latest
    figures.
    """
    bars = _Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    tasks: dict[str, TaskID] = {}
    with bars:

        def show(task: str, done: int, total: int, figures: str) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total, rate="")
            row, bars.figures = tasks[task], figures
            bars.update(row, completed=done, total=total)
            speed = bars.tasks[row].finished_speed or bars.tasks[row].speed
            bars.update(row, rate=f"{speed:.1f}/s" if speed else "")

        yield show
