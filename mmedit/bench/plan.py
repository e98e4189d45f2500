"""Everything that decides what the records of a run say."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from mmedit.bench.generation import SpeechSettings
from mmedit.bench.modes import Independent, Mode
from mmedit.cases import EditCase
from mmedit.editors.base import Editor
from mmedit.errors import ConfigError
from mmedit.progress import Progress
from mmedit.records.schema import LEFT_OUT, MODE, RUN, RunManifest
from mmedit.storage import config_folder

TrainingCases = Callable[[Progress], Sequence[EditCase]]
"""Reads the training cases. Called once at most, if an editor learns."""


class Fitted(NamedTuple):
    """An editor that a run has fitted, and how long that took."""

    folder: Path
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides what the records of a run say."""

    vlm_name: str
    dataset: str
    limit: int | None
    seed: int
    editors: Mapping[str, Editor]
    batch_size: int
    max_new_tokens: int
    command: str
    overrides: tuple[str, ...] = ()
    """What `--set` changed, of the VLM and the dataset too."""
    speech: SpeechSettings = field(default_factory=SpeechSettings)
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Records that are no cases, by reason."""
    mode: Mode = field(default_factory=Independent)
    fitted: Mapping[str, Fitted] = field(default_factory=dict)
    """Editors that another run has fitted on the same cases."""

    def __post_init__(self) -> None:
        if self.speech.wanted and not self.max_new_tokens:
            raise ConfigError(
                f"speech.{self.speech.wanted[0]} scores what is said freely, and nothing is to be "
                "generated: leave out --no-generate, or --set speech..."
            )

    def fitted_in(
        self, directory: Path, training_seconds: Mapping[str, float]
    ) -> dict[str, Fitted]:
        """The editors that this run has fitted, or taken from another one."""
        return {
            label: self.fitted.get(label) or Fitted(editor_folder(directory, label), seconds)
            for label, seconds in training_seconds.items()
        }

    def manifest(
        self, training_seconds: Mapping[str, float], hashes: Mapping[str, str] | None = None
    ) -> RunManifest:
        """What is noted of the run."""
        config: dict[str, object] = {
            RUN: {
                "batch_size": self.batch_size,
                "max_new_tokens": self.max_new_tokens,
                **self.speech.model_dump(mode="json", exclude_defaults=True),
                "overrides": list(self.overrides),
                **({} if self.mode == Independent() else {MODE: self.mode.model_dump(mode="json")}),
                **({LEFT_OUT: dict(self.left_out)} if self.left_out else {}),
            }
        }
        for label, editor in self.editors.items():
            config[label] = editor.config.model_dump(mode="json")
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
            config=config,
            training_seconds=dict(training_seconds),
            commit=commit(),
            hashes=dict(hashes or {}),
        )


def editor_folder(directory: Path, label: str) -> Path:
    """The folder of an editor that is fitted for a run."""
    return directory / "editors" / label.lower()


@cache
def commit() -> str | None:
    """Of the checkout that mmedit lies in, with "+" where it was changed since."""
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
