"""Editors as a caller gives them: an `Editor`, or an object of your own that edits like one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

from mmedit.cases import Example
from mmedit.editors.base import Editor
from mmedit.errors import EditorError, shortened
from mmedit.vlm.interface import VLM


@runtime_checkable
class EditsEach(Protocol):
    """The one method that measuring separate edits needs. A class of your own need not be an
    `Editor` for it.
    """

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        """Return a VLM whose row i is edited with requests[i] alone."""
        ...


def as_editor(given: Any) -> Editor[Any]:
    """Return an editor, or what edits like one, as it is. Raises EditorError for anything else,
    such as its name.
    """
    if isinstance(given, Editor):
        return given
    if isinstance(given, EditsEach) and not isinstance(given, type):
        return cast(Editor, given)
    name = given if isinstance(given, str) else "ft"
    raise EditorError(
        f"{shortened(given)} was given where an editor is expected; load one: "
        f"editor = mmedit.load_editor({shortened(name)}, vlm)"
    )


def label_of(editor: Editor) -> str:
    """Return an editor's label. Raises EditorError for one of your own that has none."""
    if isinstance(editor, Editor):
        return editor.label
    raise EditorError(
        f"{shortened(editor)} has no label for its records; give one: evaluate(..., name=...)"
    )
