"""The interface of datasets: frozen settings with a method that loads edit cases."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from mmedit.cases import Cases, Example, Split, image_name
from mmedit.datasets.neighbours import (
    MAKE,
    Neighbours,
    Place,
    parse_neighbours,
    same_question,
    with_devqa,
)
from mmedit.errors import ConfigError, DataError, UnknownNameError, shortened
from mmedit.progress import Progress, silent
from mmedit.settings import Settings

MAX_BYTES = 1 << 30
"""Maximum size of a text file, in bytes."""
CaseSplit = Literal["train", "validation", "test"]
"""A split, or the cases that settings are chosen on, which are not in the test split."""
SPLITS: tuple[CaseSplit, ...] = get_args(CaseSplit)


ProbeSet = Literal["devqa", "binding"]
"""Probes that tell deep edits from shallow ones, which are asked if `dataset.probes` names them."""


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [] if value is None else [value]


class DatasetSettings(Settings, ABC):
    """The settings of one dataset, as `configs/dataset/*.yaml` and `--set dataset.*` give them."""

    probes: Annotated[tuple[ProbeSet, ...], BeforeValidator(_as_list)] = ()
    """Further probes: "devqa" (RI, NI, CI, Q-Loc), "binding" (N-Bind, O-Bind, O-Ent), or both. Each
    of them takes as long as all others together.
    """
    neighbours: Path | None = None
    """A file of `mmedit data neighbours`, which fixes the similar questions of "devqa"."""

    def load(
        self,
        split: CaseSplit,
        *,
        limit: int | None = None,
        seed: int = 0,
        progress: Progress = silent,
    ) -> Cases:
        """Return the edit cases of a split, or the first `limit` of them.

        "validation" gives the first training cases: a run that measures them trains on the others.
        Raises UnknownNameError for another split, ConfigError for a negative limit or seed,
        DataError for files that are missing or wrong.
        """
        if split not in SPLITS:
            raise UnknownNameError("split", str(split), SPLITS)
        for name, value in (("limit", limit), ("seed", seed)):
            count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if not count and (name, value) != ("limit", None):
                raise ConfigError(f"{name} is {value!r}; expected a whole number from 0")
        if "binding" in self.probes and not self.has_binding:
            raise ConfigError(
                f"{type(self).__name__} has no facts for the probes of binding; leave binding out "
                "of dataset.probes, or use grocery-object, grocery-photo, or vlkeb with "
                "dataset.portability=onehop"
            )
        cases = self._read(split, limit=limit, seed=seed, progress=progress)
        if "devqa" not in self.probes:
            return cases
        chosen = {}
        if self.neighbours is not None:
            chosen = parse_neighbours(read_text(self.neighbours, MAKE), self.neighbours)
        search = Neighbours(self.training_questions(seed), self)
        asked = with_devqa(cases, search, self, chosen=chosen, progress=progress)
        return Cases(asked, cases.left_out)

    @property
    def has_binding(self) -> bool:
        """Whether its facts give the probes of binding."""
        return False

    def find_neighbours(
        self, split: CaseSplit, *, limit: int | None = None, seed: int = 0, progress: Progress
    ) -> dict[str, Place]:
        """Return the similar question of the training split of every case, by the case's id."""
        search = Neighbours(self.training_questions(seed), self)
        cases = self._read(split, limit=limit, seed=seed, progress=progress)
        found = {c.id: search.nearest(c) for c in cases if c.request.image is not None}
        return {
            case: Place(near.example.prompt, image_name(near.example))
            for case, near in found.items()
            if near is not None
        }

    def training_questions(self, seed: int) -> Iterable[Example]:
        """Return the questions of the training split that a case may have as its neighbour."""
        cases = self.read("train", limit=None, seed=seed, progress=silent)
        return [case.request for case in cases]

    def settles(self, prompt: str, other: str) -> bool:
        """Return whether an edit of one question settles another one about the same image: by
        default, if they may be the same in other words.
        """
        return same_question(prompt, other)

    def shows(self, image: Path) -> str:
        """Return what an image shows, as edits tell things apart: by default, itself."""
        return str(image)

    def _read(self, split: CaseSplit, *, limit: int | None, seed: int, progress: Progress) -> Cases:
        if split == "validation":
            return self.read_validation(limit=limit, seed=seed, progress=progress)
        return self.read(split, limit=limit, seed=seed, progress=progress)

    def questions(self, split: Split) -> Iterator[tuple[str, Example]]:
        """Return every question that cases of a split may ask, by its key, with its true answer.

        A dataset whose edits may be of what the base model knows alone has them. Raises
        ConfigError.
        """
        raise ConfigError(
            f"{type(self).__name__} has no list of its questions, so what a base model knows of it "
            "cannot be asked; use grocery or facts"
        )

    @abstractmethod
    def read(self, split: Split, *, limit: int | None, seed: int, progress: Progress) -> Cases:
        """Read the cases. `load` has checked the split, the limit and the seed."""

    def read_validation(self, *, limit: int | None, seed: int, progress: Progress) -> Cases:
        """Read the cases that settings are chosen on: the first training cases, unless a dataset
        has files of its own for it.
        """
        return self.read("train", limit=limit, seed=seed, progress=progress)


def read_text(file: Path, advice: str = "") -> str:
    """Return the text of a dataset's file, UTF-8 with or without a byte order mark.

    `advice` says what to do if the file is missing. Raises DataError: the file is missing, no
    regular file, larger than `MAX_BYTES`, may not be read, or is not UTF-8.
    """
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DataError(
                f"{_brief(file)} is not a regular file; name a text file. {advice}".strip()
            )
        if found.st_size > MAX_BYTES:
            raise DataError(
                f"{_brief(file)} has {found.st_size:,} bytes; at most {MAX_BYTES:,} are read"
            )
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"the file {_brief(file)} does not exist. {advice}".strip()) from None
    except OSError as error:
        reason = f"{_brief(file)} cannot be read: {error.strerror}. {advice}"
        raise DataError(reason.strip()) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{_brief(file)} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    except ValueError as error:  # a NUL in the path
        if isinstance(error, DataError):
            raise
        raise DataError(f"{_brief(file)} cannot be a path: {error}. {advice}".strip()) from error


def existing_folder(root: Path, name: str, advice: str) -> Path:
    """Return the folder of a dataset, with "~" expanded. Raises DataError if it is not there."""
    folder = Path(os.path.expanduser(root))
    if not os.path.isdir(folder):
        raise DataError(f"{name}: the folder {_brief(folder)} does not exist. {advice}")
    return folder


def _brief(path: Path) -> str:
    """Return a path as it is, or shortened if it is no path that people write."""
    text = str(path)
    return text if len(text) <= 300 and text.isprintable() else shortened(text)


def one_of(kind: str, known: Collection[str]) -> BeforeValidator:
    """Make a validator that raises UnknownNameError for a value that is not in `known`."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in known:
            raise UnknownNameError(kind, str(value), known)
        return value

    return BeforeValidator(check)


Folders = Annotated[tuple[Path, ...], BeforeValidator(_as_list)]
"""One folder, or a list of folders. Files are looked for in the first one first."""
