"""How long work tells how far it is: every function that takes minutes calls a `Progress`."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""Called with the task, how much of it is done, how much there is in all, and the latest figures to
show, for instance the loss of a training step ("" if there are none). The first call for a task is
its beginning: it gives what is done already, so 0 unless the task is resumed. Rates count from it.
"""


def silent(task: str, done: int, total: int, figures: str) -> None:
    """Show nothing."""


def named(progress: Progress, task: str) -> Progress:
    """Report everything under one name, for instance "fitting MEND" for an editor's training."""
    return lambda _, done, total, figures: progress(task, done, total, figures)
