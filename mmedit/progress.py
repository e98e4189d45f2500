"""How long work tells how far it is: every function that takes minutes calls a `Progress`."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""Called with the task, how much of it is done, how much there is in all, and the latest figures to
show, for instance the loss of a training step ("" where there are none).
"""


def silent(task: str, done: int, total: int, figures: str) -> None:
    """Show nothing."""


def named(progress: Progress, task: str) -> Progress:
    """Report everything under one name, for instance "fitting MEND" for an editor's training."""
    return lambda _, done, total, figures: progress(task, done, total, figures)
