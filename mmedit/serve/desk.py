"""Models of saved edits, and edits that clients make and delete while the server runs.

An edit is saved before it is served, and it is served as it was saved. So whatever ends the server,
every edit that a client was told of is there when the server starts again.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, final

from mmedit.cases import Example
from mmedit.catalog import names
from mmedit.config import load_editor
from mmedit.editors.base import Editor
from mmedit.edits.loading import load_edit
from mmedit.errors import ConfigError, EditError, MmeditError, UnknownNameError, one_line
from mmedit.serve.models import Model, Models
from mmedit.serve.refusals import Refusal
from mmedit.storage import make_folder
from mmedit.vlm.edit import Edit, stack
from mmedit.vlm.edit_files import DESCRIPTION
from mmedit.vlm.interface import VLM

NAME = re.compile(r"\w[\w.-]{0,99}")
"""Names of edits that clients make: they are names of folders, and parts of addresses."""
NAME_BYTES = 200
"""Most bytes of such a name in UTF-8. File systems take 255, and some go to what stands beside it
while a folder is written or deleted.
"""
DELETED = ".deleted"
"""Ends the name of a folder that is being deleted. Names of edits do not begin with a dot."""


def base_model(vlm: VLM) -> Model:
    """Return the base model under the last part of its name: no client learns where it lies."""
    name = Path(vlm.name).name or "base"
    return Model(name=name, base=vlm, created=int(time.time()))


def model_of(base: VLM, edit: Edit, *, name: str = "", folder: Path | None = None) -> Model:
    """Return the model of an edit or stack. Raises EditError if it is one of another VLM."""
    made = int(datetime.fromisoformat(edit.made).timestamp())
    model = Model(name=name or edit.name, base=base, created=made, edit=edit, folder=folder)
    model.edited()  # the check that it fits
    return model


def read_edit(written: str) -> Edit:
    """Return the saved edit that `--edit` names: a folder, a hub id, or NAME=FOLDER, under the name
    that it is to be served by. Raises EditError.
    """
    name, equals, path = written.partition("=")
    if not equals or os.path.exists(written):
        return load_edit(written)
    return load_edit(path).named(name)


def add_edit(models: Models, edit: Edit) -> None:
    """Offer a saved edit under its name. Raises ConfigError, EditError."""
    _offer(models, model_of(models.base.base, edit), f"--edit {edit.name}")


def add_stack(models: Models, written: str) -> None:
    """Offer the stack that `--stack` describes: NAME=EDIT+EDIT, in their order.

    Raises ConfigError, UnknownNameError, EditError.
    """
    name, _, joined = written.partition("=")
    parts = joined.split("+")
    if not name or not all(parts):
        raise ConfigError(f"--stack {written!r} is not of the form NAME=EDIT+EDIT")
    known = {model.name: model.edit for model in models.all() if model.edit}
    for part in parts:
        if part not in known:
            raise UnknownNameError("edit (--edit)", part, known)
    edits = [edit for part in parts if (edit := known[part])]
    _offer(models, model_of(models.base.base, stack(name, edits)), f"--stack {written}")


def _offer(models: Models, model: Model, written: str) -> None:
    try:
        models.add(model)
    except Refusal:
        raise ConfigError(
            f"{written}: a model named {model.name!r} exists already; name this one otherwise: "
            f"--edit NAME=FOLDER"
        ) from None


@final
class Desk:
    """Makes and deletes edits, in the engine's thread, and keeps them in a folder."""

    def __init__(self, models: Models, folder: Path, editors: Mapping[str, Editor]) -> None:
        self._models = models
        self._folder = folder
        self._editors = dict(editors)
        """Fitted editors, by the name that clients give as `method`."""

    def restore(self) -> list[str]:
        """Offer all edits of the folder, and return why some cannot be. Raises RunError if the
        folder cannot be written into.
        """
        make_folder(self._folder)
        faults = []
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith("."):
                if path.name.endswith(DELETED):
                    shutil.rmtree(path, ignore_errors=True)
            elif (path / DESCRIPTION).is_file():
                try:
                    self._open(path)
                except (MmeditError, OSError) as error:
                    faults.append(f"{path} is not served: {one_line(error)}")
        return faults

    def require_name(self, name: str) -> None:
        """Raise Refusal unless a client may give an edit this name."""
        if not NAME.fullmatch(name) or len(name.encode()) > NAME_BYTES:
            raise Refusal(
                400,
                f"{name[:60]!r} cannot be the name of an edit; expected 1 to 100 letters, digits, "
                f"-, _ and ., the first one a letter or digit, of at most {NAME_BYTES} bytes",
                param="name",
            )
        if (self._folder / name).exists():
            raise Refusal(
                409,
                f"the server's folder of edits holds {name!r} already; choose another name",
                code="name_taken",
                param="name",
            )

    def make(
        self,
        name: str,
        method: str,
        on: Model,
        requests: Sequence[Example],
        settings: dict[str, Any],
    ) -> Model:
        """Make an edit on a model, save it, and offer it. Raises MmeditError."""
        vlm = on.edited()
        editor = self._editor(method, vlm, settings)
        edited = vlm.with_edit(editor.edit(vlm, requests, name=name))
        edited.save(self._folder / name)
        return self._open(self._folder / name)

    def delete(self, name: str) -> None:
        """Delete an edit that was made here. Raises Refusal."""
        model = self._models.get(name)
        if model.folder is None:
            raise Refusal(
                403,
                f"{name!r} was named when the server was started, so it cannot be deleted; start "
                "the server without it",
                code="not_deletable",
            )
        doomed = model.folder.with_name(f".{model.folder.name}.{time.time_ns()}{DELETED}")
        with suppress(FileNotFoundError):  # it was removed by hand
            model.folder.rename(doomed)
        self._models.remove(name)
        with suppress(OSError):  # the rest goes when the server starts again
            shutil.rmtree(doomed)

    def _open(self, path: Path) -> Model:
        model = model_of(self._models.base.base, load_edit(path), name=path.name, folder=path)
        self._models.add(model)
        return model

    def _editor(self, method: str, vlm: VLM, settings: dict[str, Any]) -> Editor:
        if method in self._editors:
            if settings:
                raise EditError(
                    f"{method} is a fitted editor, whose settings are fixed; leave settings out"
                )
            return self._editors[method]
        if method not in names("editor"):  # never a folder: a client must not choose files
            raise UnknownNameError("method", method, [*names("editor"), *self._editors])
        if wrong := settings.keys() & {"name", "vlm"}:  # parameters of `load_editor`
            raise ConfigError(f"{method} has no setting {wrong.pop()!r}; leave it out")
        editor = load_editor(method, vlm, **settings)
        if editor.needs_fit:
            raise EditError(
                f"{method} must be fitted before it edits; fit it (mmedit fit), and start the "
                "server with --editor DIR"
            )
        return editor
