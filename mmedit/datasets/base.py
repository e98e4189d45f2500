"""The interface of datasets: frozen settings with a method that loads edit cases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator

from mmedit.cases import Cases, Split
from mmedit.errors import ConfigError, UnknownNameError
from mmedit.progress import Progress, silent
from mmedit.settings import Settings

SPLITS: tuple[Split, ...] = get_args(Split)


class DatasetSettings(Settings, ABC):
    """The settings of one dataset, as `configs/dataset/*.yaml` and `--set dataset.*` give them."""

    def load(
        self,
        split: Split,
        *,
        limit: int | None = None,
        seed: int = 0,
        progress: Progress = silent,
    ) -> Cases:
        """Return the edit cases of a split, or the first `limit` of them.

        Raises UnknownNameError for a split that is neither train nor test, ConfigError for a
        negative limit or seed, DataError for files that are missing or wrong.
        """
        if split not in SPLITS:
            raise UnknownNameError("split", str(split), SPLITS)
        for name, value in (("limit", limit), ("seed", seed)):
            if value is not None and (not isinstance(value, int) or value < 0):
                raise ConfigError(f"{name} is {value!r}; expected a whole number from 0")
        return self.read(split, limit=limit, seed=seed, progress=progress)

    @abstractmethod
    def read(self, split: Split, *, limit: int | None, seed: int, progress: Progress) -> Cases:
        """Read the cases. `load` has checked the split, the limit and the seed."""


def one_of(kind: str, known: Collection[str]) -> BeforeValidator:
    """Make a validator that raises UnknownNameError for a value that is not in `known`."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in known:
            raise UnknownNameError(kind, str(value), known)
        return value

    return BeforeValidator(check)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [] if value is None else [value]


Folders = Annotated[tuple[Path, ...], BeforeValidator(_as_list)]
"""One folder, or a list of folders. Files are looked for in the first one first."""
