"""The folders that the page writes to and reads from. No name leads out of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mmedit.errors import EditError, shortened

NAME = re.compile(r"\w[\w.-]{0,63}")
EDIT_FILE = "edit.json"
"""The file that makes a folder an edit."""


@dataclass(frozen=True)
class Folders:
    """The folders of saved edits and of exported models."""

    edits: Path
    exports: Path

    def saved(self) -> list[str]:
        """Return the names of the saved edits, in alphabetical order."""
        if not self.edits.is_dir():
            return []
        found = (folder for folder in self.edits.iterdir() if (folder / EDIT_FILE).is_file())
        return sorted(folder.name for folder in found if NAME.fullmatch(folder.name))

    def to_save(self, name: object) -> Path:
        """Return the new folder of an edit. Raises EditError if it exists or cannot be a name."""
        return _new(self.edits, name)

    def to_export(self, name: object) -> Path:
        """Return the new folder of an export. Raises EditError as `to_save` does."""
        return _new(self.exports, name)

    def to_load(self, name: object) -> Path:
        """Return the folder of a saved edit. Raises EditError if there is none of this name."""
        if not name:
            raise EditError("No edit is chosen. Choose one of the saved edits first.")
        if name not in self.saved():
            raise EditError(
                f"{self.edits} has no saved edit named {shortened(name)}. Choose one of the list."
            )
        return _inside(self.edits, str(name))


def _new(root: Path, name: object) -> Path:
    if not isinstance(name, str) or not name.strip():
        raise EditError("The name is empty. Write a name for the folder first.")
    path = _inside(root, name.strip())
    if path.exists():
        raise EditError(f"{path} exists already. Choose another name.")
    return path


def _inside(root: Path, name: str) -> Path:
    """Return the path of a name in a folder. Raises EditError for a name that leads elsewhere."""
    if not NAME.fullmatch(name):
        raise EditError(
            f"{shortened(name)} cannot be the name of a folder here; expected at most 64 letters, "
            "digits, dots, hyphens and underscores, the first one a letter or a digit."
        )
    path = root / name
    if path.resolve().parent != root.resolve():
        raise EditError(f"{path} is a link to another place. Choose another name.")
    return path
