"""Every error that mmedit raises on purpose. Each says what was found, what was wanted, and what to
do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class MmeditError(Exception):
    """Base of all errors raised on purpose; the command line prints it and exits with code 2."""


class UnknownNameError(MmeditError, KeyError):
    """A name that is in no table, with the nearest right one.

    >>> raise UnknownNameError("editor", "mnd", ["ft", "mend"])
    Traceback (most recent call last):
    ...
    mmedit.errors.UnknownNameError: no editor named 'mnd'. Did you mean 'mend'? There are: ft, mend.
    """

    def __init__(self, kind: str, found: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = get_close_matches(found, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        self.message = f"no {kind} named {found!r}.{hint} There are: {', '.join(known)}."
        super().__init__(self.message)

    def __str__(self) -> str:  # KeyError would print the repr
        return self.message


class ConfigError(MmeditError, ValueError):
    """A config file or a `--set` override that does not fit what it configures."""


class EmptyAnswerError(MmeditError, ValueError):
    """An example without a single answer token: there is nothing to score or to learn."""


class ImageError(MmeditError, ValueError):
    """An image that is missing, broken, too large, or not supported by the VLM."""


class DataError(MmeditError, ValueError):
    """A dataset or record file that does not say what it should; names file, row and key."""


class DownloadError(MmeditError, RuntimeError):
    """A file that cannot be fetched, kept, or is not the one that was wanted."""


class ModelError(MmeditError, ValueError):
    """A model folder that cannot be loaded, or a request that the loaded VLM cannot serve."""


class SiteError(MmeditError, ValueError):
    """An edit site that the VLM does not have, or a delta that does not fit it."""


class EditorError(MmeditError, RuntimeError):
    """An editor used before it was trained, with settings that exclude each other, or loaded onto
    another VLM.
    """


class TrainingError(MmeditError, ArithmeticError):
    """Training that ran into NaN or infinity."""


class RunError(MmeditError, RuntimeError):
    """A run directory that cannot be written, or that holds another run."""


class JudgeError(MmeditError, RuntimeError):
    """A language model that was to judge answers, and does not."""
