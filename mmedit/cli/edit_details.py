"""All that is in the folder of an edit, for `mmedit edits DIR`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from mmedit.cli.console import out, say
from mmedit.cli.edit_views import answers_view, plain
from mmedit.delta_files import from_tensors
from mmedit.edits.site_changes import SiteChange, changes_of
from mmedit.errors import DataError, EditError
from mmedit.storage import size_of
from mmedit.training.checkpoints import dotted
from mmedit.vlm.edit import DeltaChange, Seen
from mmedit.vlm.edit_files import TENSORS, Opened, read_edits
from mmedit.vlm.edit_schema import SavedEdit, SavedEdits


def print_edit(path: Path, *, rows: int | None) -> None:
    """Print all that is in a folder of edits; of a long table at most `rows` rows.

    Raises EditError if the folder is damaged.
    """
    opened = read_edits(path)
    described = opened.description
    changes = [_changes(opened, number) for number in range(len(described.edits))]
    out.print(_heading(path, described))
    say("\nEdits, in their order")
    out.print(_table(_edit_rows(described.edits, changes), EDIT_COLUMNS, rows))
    say("\nRequests")
    out.print(_table(_request_rows(described.edits), REQUEST_COLUMNS, rows))
    for label, settings in _settings(described.edits):
        say(f"\nSettings of {label}\n{settings}")
    _print_changes(described.edits, changes, rows)
    _print_seen(described.edits, rows)


EDIT_COLUMNS = ("name", "method", "requests", "made (UTC)", "seconds", "made on", "change")
REQUEST_COLUMNS = ("edit", "question", "new answer", "image")
CHANGE_COLUMNS = ("edit", "site", "kind", "rank", "Frobenius norm", "numbers")


def _heading(path: Path, described: SavedEdits) -> Text:
    vlm = described.vlm
    name = f"{vlm.name}: " if vlm.name else ""
    return Text(
        f"{path} ({decimal(size_of(path))}, written by mmedit {plain(described.mmedit)})\n"
        f"VLM  {plain(name + vlm.family)}, config {plain(vlm.config[:12])}, weights "
        f"{plain(vlm.weights[:12])}"
    )


def _changes(opened: Opened, number: int) -> list[SiteChange] | None:
    """Return the changes of weights of an edit; None for one that changes no weight."""
    if opened.description.edits[number].kind != DeltaChange.kind:
        return None
    try:
        return changes_of(from_tensors(opened.path / TENSORS, opened.tensors[number]))
    except DataError as error:
        raise EditError(str(error)) from None


def _edit_rows(
    edits: Sequence[SavedEdit], changes: Sequence[Sequence[SiteChange] | None]
) -> list[Sequence[str]]:
    return [
        (
            *(edit.name, edit.label, str(len(edit.requests)), edit.made.replace("T", " ")[:19]),
            "" if edit.seconds is None else f"{edit.seconds:.2f}",
            _made_on(edit, [one.name for one in edits[:number]]),
            f"around the VLM ({edit.kind})" if made is None else _of_sites(made),
        )
        for number, (edit, made) in enumerate(zip(edits, changes, strict=True))
    ]


def _made_on(edit: SavedEdit, above: Sequence[str]) -> str:
    """Return the edits that an edit was made on; those of its own folder stand above it."""
    others = [name for name in edit.on if name not in above]
    if len(others) < len(edit.on):
        others.append("those above")
    return " + ".join(others) or "the base model"


def _of_sites(changes: Sequence[SiteChange]) -> str:
    return "1 weight" if len(changes) == 1 else f"{len(changes)} weights"


def _request_rows(edits: Sequence[SavedEdit]) -> list[Sequence[str]]:
    return [
        (edit.name, request.prompt, request.target, request.image or "none")
        for edit in edits
        for request in edit.requests
    ]


def _settings(edits: Sequence[SavedEdit]) -> list[tuple[str, str]]:
    """Return the settings of every method, in words; edits of equal settings share them."""
    found: dict[tuple[str, str], None] = {}
    for edit in edits:
        values = ", ".join(f"{key}={_value(value)}" for key, value in dotted(edit.config).items())
        found[plain(f"{edit.label} ({edit.method})"), plain(values) or "none"] = None
    return list(found)


def _value(value: Any) -> str:
    return " ".join(map(str, value)) or "()" if isinstance(value, list) else str(value)


def _print_changes(
    edits: Sequence[SavedEdit],
    changes: Sequence[Sequence[SiteChange] | None],
    rows: int | None,
) -> None:
    found = [
        (
            *(edit.name, change.site, change.kind),
            "full" if change.rank is None else str(change.rank),
            f"{change.norm:.4g}",
            f"{change.parameters:,}",
        )
        for edit, made in zip(edits, changes, strict=True)
        for change in made or ()
    ]
    if found:
        say("\nChanges of weights")
        out.print(_table(found, CHANGE_COLUMNS, rows))


def _print_seen(edits: Sequence[SavedEdit], rows: int | None) -> None:
    seen = [Seen(**one.model_dump()) for edit in edits for one in edit.seen]
    if seen:
        say("\nAnswers when it was made")
        out.print(answers_view("the edit", seen, rows=rows))


def _table(found: Iterable[Sequence[str]], columns: Sequence[str], rows: int | None) -> Table:
    table, found = Table(box=None, pad_edge=False), list(found)
    for heading in columns:
        table.add_column(heading, overflow="fold")
    for cells in found if rows is None else found[:rows]:
        table.add_row(*(Text(plain(cell)) for cell in cells))
    if rows is not None and len(found) > rows:
        table.add_row("...", f"and {len(found) - rows:,} more (--all)")
    return table
