"""Folders of edits: finding them, completing their names, the VLM that they belong to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmedit.catalog import require_known
from mmedit.cli.console import known, names_of
from mmedit.errors import ConfigError, EditError, MmeditError

if TYPE_CHECKING:
    from mmedit.vlm.edit import Edit
    from mmedit.vlm.interface import VLM

EDITS = "edits"
"""The folder in which edits are looked for."""
DESCRIPTION = "edit.json"


def edit_folders(incomplete: str) -> list[str]:
    """Complete the folder of an edit in the shell: those below edits/ and below what was typed."""
    typed = Path(incomplete).parent if os.sep in incomplete else Path(EDITS)
    found = [str(path) for path in found_below(typed)]
    return [path for path in found if path.startswith(incomplete)]


OptionalVlmOption = Annotated[
    str | None,
    typer.Option(
        "--vlm",
        metavar="NAME",
        help="A name of `mmedit ls vlms`, a model folder, or a hub id.",
        callback=known("vlm"),
        autocompletion=names_of("vlm"),
        show_default="that of the edits, or embedded",
    ),
]


def vlm_of(edits: Sequence[Edit]) -> str:
    """Return the name of the VLM that edits were made on; "embedded" without edits.

    Raises ConfigError if they were made on several or do not say, and EditError if it is not there.
    """
    found = list(dict.fromkeys(edit.vlm_name for edit in edits if edit.vlm_name))
    if len(found) > 1:
        raise ConfigError(f"the edits were made on {', '.join(found)}; name one VLM with --vlm")
    if not edits:
        return "embedded"
    if not found:
        raise ConfigError(
            f"the edit {edits[0].name!r} does not say which VLM it was made on; name it with --vlm"
        )
    try:
        require_known("vlm", found[0])
    except MmeditError as error:
        raise EditError(
            f"the edit {edits[0].name!r} was made on the VLM {found[0]!r}, which is not here; name "
            f"its folder with --vlm ({error})"
        ) from None
    return found[0]


def with_edits(vlm: VLM, edits: Sequence[Edit]) -> VLM:
    """Return the VLM with edits, or stacks of them, added in their order. Raises EditError."""
    for edit in edits:
        vlm = vlm.with_edit(edit)
    return vlm


def found_below(path: Path) -> Iterator[Path]:
    """Yield the folders of edits at and below a path, in alphabetical order.

    An edit is not searched for others; neither are hidden folders.
    """
    if (path / DESCRIPTION).is_file():
        yield path
        return
    try:
        inside = sorted(entry.path for entry in os.scandir(path) if _is_open(entry))
    except OSError:
        return
    for entry in inside:
        yield from found_below(Path(entry))


def _is_open(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
