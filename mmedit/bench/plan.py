"""The plan of a run: every setting that decides its records."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

from mmedit.bench.contradictions import OnContradiction
from mmedit.bench.generation import GenerationSettings
from mmedit.bench.modes import Independent, Mode
from mmedit.cases import EditCase
from mmedit.editors.base import Editor
from mmedit.errors import ConfigError
from mmedit.progress import Progress
from mmedit.records.schema import RunManifest, RunSettings
from mmedit.storage import config_folder

EDITORS = "editors"
"""Folder of the editors that a run has fitted, inside its own."""
TrainingCases = Callable[[Progress], Sequence[EditCase]]
"""Reads the training cases; called at most once, if an editor learns."""


class Fitted(NamedTuple):
    """The folder of an editor that a run has fitted, and the seconds that took."""

    folder: Path
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every setting that decides the records of a run; ConfigError if two exclude each other."""

    vlm_name: str
    dataset: str
    split: Literal["test", "validation"] = "test"
    """The cases that are measured."""
    limit: int | None
    seed: int
    editors: Mapping[str, Editor]
    batch_size: int
    max_new_tokens: int | None
    """Largest length of a generation in tokens: 0 without generations, None if it follows from the
    accepted answers once the VLM is loaded (`answer_length`).
    """
    command: str
    overrides: tuple[str, ...] = ()
    """Every `--set` of the command, also those of the VLM and the dataset."""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    read: int = 0
    """Number of records of the dataset that were read; at most the limit."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of records of the dataset that were left out, by reason."""
    contradictions: Mapping[str, int] = field(default_factory=dict)
    """Number of probes and requests that another edit contradicts, by name."""
    on_contradiction: OnContradiction = "error"
    """"skip" if they were left out."""
    mode: Mode = field(default_factory=Independent)
    latency: int = 0
    """Number of edits of each editor that are timed one at a time besides."""
    fitted: Mapping[str, Fitted] = field(default_factory=dict)
    """Editors that another run has fitted on the same training cases, by label."""

    def __post_init__(self) -> None:
        changed = list(self.generation.model_dump(exclude_defaults=True))
        if changed and self.max_new_tokens == 0:
            raise ConfigError(
                f"generation.{changed[0]} is a setting of free generations, which --no-generate "
                "turns off; leave out one of the two"
            )

    @property
    def remarks(self) -> list[str]:
        """Sentences for the person who starts the run, which no table needs."""
        if self.limit is None or self.read >= self.limit:
            return []
        return [
            f"--limit {self.limit:,} is more than the {self.read:,} {self.split} cases that "
            f"{self.dataset} has: all of them are used"
        ]

    def fitted_in(
        self, directory: Path, training_seconds: Mapping[str, float]
    ) -> dict[str, Fitted]:
        """Return the editors that this run has fitted or taken from another run, by label."""
        return {
            label: self.fitted.get(label) or Fitted(editor_folder(directory, label), seconds)
            for label, seconds in training_seconds.items()
        }

    def manifest(self, training_seconds: Mapping[str, float]) -> RunManifest:
        """Return what is noted of the run in its folder."""
        packages = ("mmedit", "torch", "transformers", "easy-vqa")
        return RunManifest(
            command=self.command,
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
            },
            vlm=self.vlm_name,
            dataset=self.dataset,
            limit=self.limit,
            seed=self.seed,
            editors=tuple(self.editors),
            config={label: e.config.model_dump(mode="json") for label, e in self.editors.items()},
            run=RunSettings(
                batch_size=self.batch_size,
                max_new_tokens=self.max_new_tokens,
                generation=self.generation.model_dump(
                    mode="json", exclude_defaults=True, exclude={"max_new_tokens"}
                ),
                overrides=self.overrides,
                split=self.split,
                mode=self.mode.model_dump(mode="json"),
                left_out=dict(self.left_out),
                contradictions=dict(self.contradictions),
                on_contradiction=self.on_contradiction,
            ),
            training_seconds=dict(training_seconds),
            commit=commit(),
        )


def editor_folder(directory: Path, label: str) -> Path:
    """Return the folder of an editor that is fitted for a run."""
    return directory / EDITORS / label.lower()


@cache
def commit() -> str | None:
    """Return the commit of the checkout that mmedit lies in, with "+" if files were changed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        run = partial(subprocess.run, check=True, capture_output=True, text=True, timeout=10)
        if not run([*git, "ls-files", __file__]).stdout:
            return None  # installed into another project's checkout
        source = [".", str(config_folder())]
        changed = run([*git, "status", "--porcelain", "--untracked-files=no", *source]).stdout
        return run([*git, "rev-parse", "HEAD"]).stdout.strip() + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
