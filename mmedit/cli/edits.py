"""Saved edits: the list of them, and all that is in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from mmedit.cli.console import app, examples, folder, out, say
from mmedit.cli.edit_folders import EDITS, edit_folders, found_below
from mmedit.errors import EditError, MmeditError
from mmedit.storage import size_of

if TYPE_CHECKING:
    from mmedit.vlm.edit_schema import SavedEdits

COUNTS = ("edits", "requests", "size")
"""Columns of numbers."""
WIDEST = 60
"""Longest name of a folder that is never broken, in letters."""


@app.command(epilog=examples("mmedit edits", "mmedit edits edits/dog", "mmedit edits runs/mine"))
def edits(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=folder,
            metavar="[DIR]...",
            help="The folder of an edit, or a folder with edits in it.",
            show_default="edits",
            autocompletion=edit_folders,
        ),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="Show every row of a long table.")
    ] = False,
) -> None:
    """List saved edits, or show all that is in one: requests, settings, VLM, size, what it changed.

    Loads no VLM.
    """
    asked = [path.expanduser() for path in folders or [Path(EDITS)]]
    for path in asked:
        if folders and not path.is_dir():
            raise EditError(f"the folder {path} does not exist; expected the folder of an edit")
    found = list(dict.fromkeys(one for path in asked for one in found_below(path)))
    if not found:
        where = ", ".join(map(str, asked))
        raise EditError(
            f"there are no edits in {where}; make one: mmedit edit --prompt ... --target ... "
            f"--out {EDITS}/NAME"
        )
    if len(found) == 1 and folders and found == asked:
        from mmedit.cli.edit_details import print_edit

        print_edit(found[0], rows=None if show_all else 20)
        return
    _print_list(found)


def _print_list(found: Sequence[Path]) -> None:
    """Print a row for every folder. A damaged one is named below the table."""
    from mmedit.vlm.edit_files import read_description

    table, damaged = Table(box=None, pad_edge=False), list[str]()
    for heading in ("folder", "method", "edits", "requests", "VLM", "size", "made (UTC)"):
        justify = "right" if heading in COUNTS else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    table.columns[0].min_width = min(WIDEST, max(len(str(path)) for path in found))
    for path in found:
        try:
            table.add_row(*_row(path, read_description(path)))
        except MmeditError as error:
            damaged.append(str(error))
    if table.row_count:
        out.print(table)
    for fault in damaged:
        say(f"damaged: {fault}")
    if damaged and not table.row_count:
        raise typer.Exit(2)


def _row(path: Path, described: SavedEdits) -> list[Text]:
    from mmedit.cli.edit_views import plain

    made = described.edits
    labels = " + ".join(dict.fromkeys(edit.label for edit in made))
    requests = sum(len(edit.requests) for edit in made)
    date = made[-1].made.replace("T", " ")[:16]
    cells = (
        *(str(path), labels, str(len(made)), str(requests)),
        *(_vlm(described.vlm.name) or described.vlm.family, decimal(size_of(path)), date),
    )
    return [Text(plain(cell)) for cell in cells]


def _vlm(name: str) -> str:
    """Return the name of a VLM; of a path its last part."""
    return Path(name).name if name.startswith(("/", ".", "~")) else name
