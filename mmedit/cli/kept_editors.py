"""The editor that `mmedit edit` must fit first: kept if a person says so, and used again."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmedit.cli.console import err, say
from mmedit.errors import ConfigError
from mmedit.storage import make_folder

if TYPE_CHECKING:
    from mmedit.editors.base import Editor


def editor_folder(
    editor: Editor, name: str, vlm: str, given: Path | None, *, begun: bool
) -> Path | None:
    """Return the folder that keeps the editor which must be fitted first; None for none.

    Without --save-editor a person at a terminal is asked. A command that was `begun` before may
    have kept its editor already. Raises ConfigError.
    """
    if not editor.needs_fit or editor.is_fitted:
        if given is not None:
            why = "is fitted already" if editor.is_fitted else "has nothing to learn"
            raise ConfigError(f"--save-editor keeps a new editor, and {name} {why}; leave it out")
        return None
    place = given or Path("editors") / name
    first = f"{editor.label} must be fitted before it can edit. It is fitted now"
    thrown = "for this edit alone, and then thrown away"
    if is_kept(place):
        found = f"{place} holds a fitted editor already; use it with --editor {_quoted(place)}"
        if given is None:
            say(f"{first}, {thrown}. {found}", to=err)
            return None
        if not begun:
            raise ConfigError(f"{found}, or name another folder")
        return place
    if given is None and not _agrees(first, place):
        say(
            f"{first}, {thrown}. To keep it: --save-editor "
            f"{_quoted(place)}, or: mmedit fit --editor {name} --vlm {vlm} --out {_quoted(place)}",
            to=err,
        )
        return None
    make_folder(place)
    return place


def is_kept(place: Path | None) -> bool:
    """Return whether a folder holds a fitted editor."""
    return place is not None and (place / "editor.json").is_file()


def kept_editor(editor: Editor, place: Path) -> Editor:
    """Return the editor that an earlier call of the same command kept. Raises ConfigError."""
    found = type(editor).load(place, label=editor.label)
    if found.config != editor.config:
        raise ConfigError(
            f"{place} holds a fitted editor of other settings; name another --save-editor, or use "
            f"it with --editor {_quoted(place)}"
        )
    say(f"The fitted editor in {place} is used", to=err)
    return found


def _agrees(first: str, place: Path) -> bool:
    """Ask a person whether an editor shall be kept; in a pipe there is nobody to ask."""
    if not _is_terminal():
        return False
    say(f"{first}.", to=err)
    return typer.confirm(f"Keep the fitted editor in {place}?", default=True, err=True)


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
