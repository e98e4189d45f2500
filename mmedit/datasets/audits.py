"""The datasets whose files `mmedit data check NAME` can check, and how."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmedit.datasets.annotated import audit as annotated
from mmedit.datasets.annotated.releases import PUBLISHED, OwnFiles
from mmedit.datasets.base import Folders
from mmedit.datasets.grocery import audit as grocery
from mmedit.datasets.grocery import counts as grocery_counts
from mmedit.datasets.known import Known
from mmedit.errors import ConfigError, DataError
from mmedit.progress import Progress
from mmedit.settings import Settings


class AuditSettings(Settings):
    """Locations of the files that `mmedit data check` reads."""

    root: Path
    """The dataset's folder; for `json` the file itself."""
    images: Folders = ()
    """Image folders, if they are not the usual ones."""
    known: Path | None = None
    """For grocery: a file of `mmedit data known`."""


AuditFunction = Callable[[AuditSettings, bool, Progress, str], str]
"""Called with the settings, whether to open every image, the progress to report, and the command
that the text shall name. Returns Markdown. Raises DataError if a file cannot be read.
"""


def _require_no_known(settings: AuditSettings) -> None:
    """Raise ConfigError if a known file is named for a dataset that has none."""
    if settings.known:
        raise ConfigError("--known is for grocery; leave it out")


def _check_release(
    name: str, settings: AuditSettings, decode: bool, progress: Progress, command: str
) -> str:
    _require_no_known(settings)
    dataset = PUBLISHED[name](root=settings.root, images=settings.images)
    audits, absent = annotated.audit_release(dataset, decode=decode, progress=progress)
    return annotated.markdown(audits, command, absent)


def _check_own(settings: AuditSettings, decode: bool, progress: Progress, command: str) -> str:
    _require_no_known(settings)
    dataset = OwnFiles(test=settings.root, images=settings.images)
    found = annotated.audit(dataset.source("test"), decode=decode, progress=progress)
    return annotated.markdown([found], command)


def _check_grocery(settings: AuditSettings, decode: bool, progress: Progress, command: str) -> str:
    if settings.images:
        raise ConfigError("the photographs of grocery are in its folder; leave --images out")
    if settings.known:
        Known.read(settings.known)  # a wrong file is found before anything else is read
    found = grocery.audit(settings.root, decode=decode, progress=progress)
    text = grocery.markdown(found, command)
    try:
        counts = grocery_counts.count(settings.root, settings.known, progress)
    except DataError as error:
        return f"{text}- no cases can be made: {error}\n"
    return text + "\n".join(grocery_counts.markdown(counts, settings.known)) + "\n"


AUDITS: dict[str, AuditFunction] = {
    **{name: partial(_check_release, name) for name in PUBLISHED},
    "grocery": _check_grocery,
    "json": _check_own,
}
"""The check of each dataset, by name."""
