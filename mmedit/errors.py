"""Every error that mmedit raises on purpose. Each says what was found, what was expected, and what
to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def did_you_mean(found: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return a sentence that names the known word nearest to `found`, or "" where none is near.

    `cutoff` is the least similarity, from 0 to 1 (`difflib.get_close_matches`).

    >>> did_you_mean("mnd", ["ft", "mend"])
    " Did you mean 'mend'?"
    """
    near = get_close_matches(found, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


def shortened(value: object, length: int = 60) -> str:
    """Return the repr of a value, with its middle left out if it is longer than `length`.

    >>> shortened("abcdefgh", 9)
    "'ab...gh'"
    """
    text = repr(value)
    if len(text) <= length:
        return text
    half = (length - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def one_line(error: object, length: int = 400) -> str:
    r"""Return the text of an error on one line, at most `length` characters of it.

    >>> one_line("first\n  second")
    'first second'
    """
    text = " ".join(str(error).split())
    return text if len(text) <= length else text[: length - 3] + "..."


class MmeditError(Exception):
    """Base of all errors raised on purpose; the command line prints it and exits with code 2."""


class UnknownNameError(MmeditError, KeyError):
    """An unknown name. The message holds the nearest known one.

    >>> raise UnknownNameError("editor", "mnd", ["ft", "mend"])
    Traceback (most recent call last):
    ...
    mmedit.errors.UnknownNameError: no editor named 'mnd'. Did you mean 'mend'? There are: ft, mend.
    """

    def __init__(self, kind: str, found: str, known: Iterable[str]) -> None:
        known = sorted(known)
        hint = did_you_mean(found, known)
        self.message = f"no {kind} named {shortened(found)}.{hint} There are: {', '.join(known)}."
        super().__init__(self.message)

    def __str__(self) -> str:  # KeyError would print the repr
        return self.message


class ConfigError(MmeditError, ValueError):
    """A config file or a `--set` override that does not fit what it configures."""


class EmptyAnswerError(MmeditError, ValueError):
    """An example without an answer token, so nothing can be scored or learnt."""


class ImageError(MmeditError, ValueError):
    """An image that is missing, broken, too large, or not supported by the VLM."""


class DataError(MmeditError, ValueError):
    """A dataset or record file with a wrong content. The message names file, row and key."""


class DownloadError(MmeditError, RuntimeError):
    """A file that cannot be fetched or kept, or that is not the expected one."""


class ModelError(MmeditError, ValueError):
    """A model folder that cannot be loaded, or a request that the loaded VLM cannot serve."""


class SiteError(MmeditError, ValueError):
    """An edit site that the VLM does not have, or a delta that does not fit it."""


class EditorError(MmeditError, RuntimeError):
    """An editor used before it was trained, with settings that exclude each other, or loaded onto
    another VLM.
    """


class EditError(MmeditError, RuntimeError):
    """An edit that cannot be saved or loaded, or that belongs to another VLM."""


class LostEditError(EditError):
    """An export that does not answer as the edited VLM does. It was removed."""

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message)
        self.report = report
        """The `mmedit.export.report.Export`, with all that was seen."""


class TrainingError(MmeditError, ArithmeticError):
    """Training that cannot go on."""


class DivergedError(TrainingError):
    """Training that ran into NaN or infinity, or whose loss is too large."""


class RunError(MmeditError, RuntimeError):
    """A run folder that cannot be written, or that holds another run."""


class ServeError(MmeditError, RuntimeError):
    """A server that cannot begin to serve."""


class JudgeError(MmeditError, RuntimeError):
    """A language model that should judge answers and does not."""
