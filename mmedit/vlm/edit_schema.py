"""The content of an edit.json."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from mmedit.settings import Settings
from mmedit.vlm.identity import Identity


def _as_date(text: str) -> str:
    """Return a date and time as it is. Raises ValueError if it is not one."""
    datetime.fromisoformat(text)
    return text


class SavedRequest(Settings):
    """A request in edit.json."""

    prompt: str
    target: str
    image: str | None = Field(default=None, pattern=r"^images/[0-9a-f]{32}\.[a-z]{3,4}$")
    """Path of the image inside the folder. Its form leads nowhere else, so links are followed: a
    folder of the hub's cache is made of them.
    """
    context: str = ""
    answers: tuple[str, ...] = ()
    subject: str = ""


class SavedSeen(Settings):
    """A `Seen` in edit.json."""

    prompt: str
    target: str
    before: str
    after: str
    has_image: bool = False
    answers: tuple[str, ...] = ()


class SavedEdit(Settings):
    """An edit in edit.json."""

    name: str
    method: str
    label: str
    kind: str
    """Kind of its change (`Change.kind`)."""
    config: dict[str, Any]
    requests: tuple[SavedRequest, ...]
    made: Annotated[str, AfterValidator(_as_date)]
    seconds: float | None = None
    on: tuple[str, ...] = ()
    seen: tuple[SavedSeen, ...] = ()
    notes: dict[str, Any] = Field(default_factory=dict)
    editor: str | None = Field(default=None, pattern=r"^editors/[0-9a-f]{16}$")
    """Path of its fitted editor inside the folder."""


class SavedVLM(Settings):
    """The base model in edit.json."""

    name: str
    family: str
    config: str
    weights: str
    processing: str = ""


class SavedEdits(Settings):
    """The content of edit.json."""

    format: int
    mmedit: str
    """Version of mmedit that wrote it."""
    name: str
    vlm: SavedVLM
    edits: tuple[SavedEdit, ...]
    sha256: str
    """SHA-256 of the file of tensors, in hexadecimal digits."""

    @property
    def identity(self) -> Identity:
        """The identity of the base model."""
        vlm = self.vlm
        return Identity(vlm.family, vlm.config, vlm.weights, vlm.processing)
