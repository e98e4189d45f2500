"""Edits made one after another, each kept on disk as soon as it is made.

facts.unfinished/             beside the folder `facts` that they become together
  plan.json                   what is being made
  facts-1/, facts-2/, ...     the finished edits, each a folder of its own

A process that is killed loses the edit that it was making. The same call continues after the last
finished one, and gives the same edits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from mmedit.cases import Example
from mmedit.editors.base import Editor
from mmedit.edits.loading import load_edit
from mmedit.errors import EditError, one_line, shortened
from mmedit.images import image_key
from mmedit.progress import Progress, silent
from mmedit.storage import write_atomically
from mmedit.vlm.edit import Edit
from mmedit.vlm.edit_files import is_edit, write_edits
from mmedit.vlm.interface import VLM

PLAN = "plan.json"


@final
@dataclass(frozen=True)
class Unfinished:
    """The folder of finished edits of a sequence that is still being made."""

    path: Path
    name: str
    """Name of the sequence; its edits are called name-1, name-2, ..."""

    @property
    def finished(self) -> int:
        """Number of edits that are finished, one after another from the first."""
        number = 0
        while is_edit(self._place(number)):
            number += 1
        return number

    def load(self, number: int) -> Edit:
        """Return a finished edit, counted from 0. Raises EditError."""
        return load_edit(self._place(number))

    def keep(self, number: int, edit: Edit, vlm: VLM) -> None:
        """Write a finished edit. Raises EditError."""
        write_edits(self._place(number), [edit], vlm.identity, vlm_name=vlm.name)

    def discard(self) -> None:
        """Delete the folder, once the sequence is saved as a whole."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _place(self, number: int) -> Path:
        return self.path / numbered(self.name, number)


def numbered(name: str, number: int) -> str:
    """Return the name of an edit of a sequence, counted from 0."""
    return f"{name}-{number + 1}"


def begin(place: Path, plan: Mapping[str, Any]) -> Unfinished:
    """Return the folder of the unfinished sequence that becomes `place`; a new one gets the plan.

    The plan is all that the edits depend on, as plain JSON. Raises EditError if the folder holds a
    sequence of another plan, or cannot be written.
    """
    path, here = _folder_of(place), _as_json(plan)
    file = path / PLAN
    try:
        if file.is_file():
            _require_same(path, json.loads(file.read_text(encoding="utf-8")), here)
        elif path.exists() and any(path.iterdir()):
            raise EditError(f"{path} exists and holds no {PLAN}; delete it, or name another --out")
        else:
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(file, (json.dumps(here, indent=1) + "\n").encode())
    except (OSError, ValueError) as error:
        raise EditError(f"{path} cannot be used: {one_line(error)}; delete it") from error
    return Unfinished(path, place.name)


def is_begun(place: Path, plan: Mapping[str, Any]) -> bool:
    """Return whether the sequence of this plan was begun and not finished."""
    try:
        there = json.loads((_folder_of(place) / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return there == _as_json(plan)


def _folder_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.unfinished")


def _as_json(plan: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(plan, default=str))


def plan_of(editor: Editor, requests: Sequence[Example], **more: Any) -> dict[str, Any]:
    """Return the plan of a sequence: the editor with its settings, the requests, and `more`."""
    origin = editor.origin
    return {
        "method": editor.method,
        "settings": editor.config.model_dump(mode="json"),
        "fitted on": None if origin is None else [origin.dataset, origin.cases, origin.seed],
        "requests": [
            [r.prompt, r.target, r.context, list(r.answers), _key(r), *filter(None, [r.subject])]
            for r in requests
        ],
        **more,
    }


def edit_in_turn(
    editor: Editor,
    vlm: VLM,
    requests: Sequence[Example],
    *,
    name: str,
    unfinished: Unfinished | None = None,
    progress: Progress = silent,
) -> VLM:
    """Return the VLM with an edit of every request, made one after another: name-1, name-2, ...

    With `unfinished`, every edit is kept there once it is made, and those that are there already
    are not made again. Raises EditError.
    """
    done = min(unfinished.finished, len(requests)) if unfinished else 0
    progress("editing", done, len(requests), "")
    for number, request in enumerate(requests):
        if unfinished and number < done:
            edit = unfinished.load(number)
        else:
            edit = editor.edit(vlm, [request], name=numbered(name, number))
            if unfinished:
                unfinished.keep(number, edit, vlm)
        vlm = vlm.with_edit(edit)
        progress("editing", max(done, number + 1), len(requests), "")
    return vlm


def _key(request: Example) -> str | None:
    return None if request.image is None else image_key(request.image)


def _require_same(path: Path, there: Any, here: Mapping[str, Any]) -> None:
    if there == here:
        return
    known = there if isinstance(there, dict) else {}
    differs = next((key for key in here if known.get(key) != here[key]), "plan")
    raise EditError(
        f"{path} holds the finished edits of another command: its {differs} "
        f"{'are' if differs.endswith('s') else 'is'} {shortened(known.get(differs))}, here "
        f"{shortened(here.get(differs))}. Give the same command again to finish it, name another "
        "--out, or delete that folder"
    )
