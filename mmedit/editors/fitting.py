"""The input of `Editor.fit`: training cases, and how to train on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from mmedit.arguments import as_cases, as_count
from mmedit.cases import EditCase
from mmedit.errors import ConfigError
from mmedit.progress import Progress, by_itself

MAX_SEED = 2**63 - 1
"""Largest seed of torch's generators."""


@dataclass(frozen=True, eq=False)
class Fitting:
    """The input of `Editor.fit`: training cases, and how to train on them."""

    cases: Sequence[EditCase]
    """The training cases."""
    _: KW_ONLY
    validation: Sequence[EditCase] = ()
    """Cases that choose the best checkpoint and can stop training early; empty: the last checkpoint
    is used.
    """
    seed: int = 0
    progress: Progress = field(default_factory=by_itself)
    """Called with every report; by default bars in a Jupyter notebook, and nothing elsewhere."""
    folder: Path | None = None
    """Folder for checkpoints. Training resumes from the last checkpoint in it."""

    def __post_init__(self) -> None:
        as_cases(self.cases)
        as_cases(self.validation)
        as_count("seed", least=0)(self.seed)
        if self.seed > MAX_SEED:
            raise ConfigError(f"seed is {self.seed}; expected at most {MAX_SEED}")


def progress_of(label: str, progress: Progress) -> Progress:
    """Report an editor's training as "fitting LABEL", and what comes before it with the label."""

    def named(task: str, done: int, total: int, figures: str) -> None:
        task = f"fitting {label}" if task == "training" else f"{task} for {label}"
        progress(task, done, total, figures)

    return named


def as_fitting(given: Any) -> Fitting:
    """Return the input of `Editor.fit`; training cases alone are accepted. Raises DataError."""
    return given if isinstance(given, Fitting) else Fitting(as_cases(given))
