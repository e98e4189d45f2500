"""Loads saved edits, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmedit.editors.base import Editor
from mmedit.editors.saved import UNREADABLE
from mmedit.errors import (
    DataError,
    EditError,
    EditorError,
    ModelError,
    UnknownNameError,
    one_line,
    shortened,
)
from mmedit.hub import pull_files, push_files
from mmedit.methods import EDITORS
from mmedit.storage import require_path
from mmedit.vlm.edit import Change, DeltaChange, Edit, stack
from mmedit.vlm.edit_files import (
    CARD,
    DESCRIPTION,
    TENSORS,
    Opened,
    edit_fields,
    read_description,
    read_edits,
)
from mmedit.vlm.edit_files import EDITORS as EDITORS_FOLDER
from mmedit.vlm.edit_schema import SavedEdit, SavedEdits

FILES = (DESCRIPTION, TENSORS, "images/*", f"{EDITORS_FOLDER}/*/*")
"""Files of an edit on the hub."""


def load_edit(path: str | Path, *, revision: str | None = None, token: str | None = None) -> Edit:
    """Load an edit, or a stack of edits, from a folder or a repository of the hub.

    `vlm.with_edit(edit)` then answers bit for bit as the VLM that was saved. Costs the reading of
    its files. Raises EditError.
    """
    if not isinstance(path, str | Path) or not str(path).strip():
        raise EditError(f"{shortened(path)} is not a folder of an edit")
    try:
        require_path(path)
    except RuntimeError as error:
        raise EditError(str(error)) from None
    folder = Path(path).expanduser()
    if not folder.is_dir():
        try:
            folder = pull_files(str(path), FILES, kind="edit", revision=revision, token=token)
        except ModelError as error:
            raise EditError(str(error)) from error
    opened = read_edits(folder)
    editors: dict[str, Editor] = {}
    parts = [_edit(opened, number, saved, editors) for number, saved in enumerate(_saved(opened))]
    try:
        return stack(opened.description.name, parts)
    except EditError as error:
        raise EditError(f"{folder / DESCRIPTION}: {error}") from None


def push_edit(path: Path, repo_id: str, *, private: bool, token: str | None = None) -> str:
    """Upload a saved edit, with a model card, and return the address of the commit.

    The images of its requests go with it. Raises EditError.
    """
    load_edit(path)
    described = read_description(path)
    try:
        (path / CARD).write_text(model_card(described, repo_id), encoding="utf-8")
        return push_files(
            path, repo_id, (*FILES, CARD), message="Edit of a VLM", private=private, token=token
        )
    except ModelError as error:
        raise EditError(str(error)) from error
    except OSError as error:
        raise EditError(f"{path} cannot be pushed to {repo_id}: {error}") from error


def model_card(described: SavedEdits, repo_id: str) -> str:
    """Return the README.md of a pushed edit."""
    vlm = described.vlm
    rows = "".join(
        f"| {_cell(edit.label)} | {_cell(request.prompt)} | {_cell(request.target)} |\n"
        for edit in described.edits
        for request in edit.requests
    )
    return (
        "---\nlibrary_name: mmedit\ntags:\n- knowledge-editing\n- mmedit\n---\n\n"
        f"# An edit of a `{vlm.family}` network\n\n"
        f"It belongs to `{vlm.name}` (config {vlm.config}, weights {vlm.weights}), and works with "
        "no other VLM.\n\n| method | request | new answer |\n|---|---|---|\n"
        f"{rows}\n```python\nfrom mmedit import load_edit, load_vlm\n\n"
        f'vlm = load_vlm("{vlm.name}")\nedited = vlm.with_edit(load_edit("{repo_id}"))\n'
        f'edited.ask("...")\n```\n'
    )


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _saved(opened: Opened) -> tuple[SavedEdit, ...]:
    return opened.description.edits


def _edit(opened: Opened, number: int, saved: SavedEdit, editors: dict[str, Editor]) -> Edit:
    where = f"{opened.path / DESCRIPTION}: edit {number + 1}"
    fields = edit_fields(opened, saved)
    try:
        change = _change(opened, saved, opened.tensors[number], fields["requests"], editors)
    except (EditorError, DataError, UnknownNameError) as error:
        raise EditError(f"{where}: {error}") from error
    except UNREADABLE as error:
        raise EditError(
            f"{where} is not one that this version of mmedit wrote ({one_line(error)})"
        ) from error
    return Edit(**fields, change=change)


def _change(
    opened: Opened,
    saved: SavedEdit,
    tensors: Mapping[str, Tensor],
    requests: Any,
    editors: dict[str, Editor],
) -> Change:
    if saved.kind == DeltaChange.kind:
        return DeltaChange.of_tensors(opened.path / TENSORS, tensors)
    if saved.method not in EDITORS:
        raise UnknownNameError("editing method", saved.method, EDITORS)
    method = EDITORS[saved.method]
    editor = None
    if saved.editor is not None:
        if saved.editor not in editors:
            editors[saved.editor] = method.load(opened.path / saved.editor)
        editor = editors[saved.editor]
    return method.load_change(saved.kind, tensors, saved.notes, requests=requests, editor=editor)
