"""All that the page does, without the page: each action takes a session and returns values."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mmedit.bench.base_outputs import BaseOutputs
from mmedit.edits.loading import load_edit
from mmedit.errors import EditError
from mmedit.play.changes import Change, changes, require_askable
from mmedit.play.exporting import export
from mmedit.play.folders import Folders
from mmedit.play.methods import READY, Method, list_methods, method_named
from mmedit.play.questions import Fields, Pictures, case_of, probed, question_of
from mmedit.play.session import Session
from mmedit.settings import Overrides
from mmedit.vlm.interface import VLM

if TYPE_CHECKING:
    from mmedit.export.report import Export
    from mmedit.vlm.edit import Edit

NEW_TOKENS = 64
"""Most tokens of an answer to a question."""
MEMORY_BYTES = 256 * 1024**2
"""Memory for kept outputs of the base model."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers to one question."""

    prompt: str
    base: str
    edited: str | None
    """None if the edited model holds no edit: it is the base model."""


@dataclass(frozen=True, kw_only=True)
class Playground:
    """One VLM with the pictures, methods and folders that all tabs share."""

    start: VLM
    """The VLM that a tab begins with: the base model, with the edits that were given."""
    pictures: Pictures
    folders: Folders
    editors_dir: Path = Path("editors")
    """The folder that is looked through for fitted editors."""
    editors: tuple[str, ...] = ()
    """Further fitted editors by folder or hub id."""
    overrides: Overrides = field(default_factory=Overrides)
    vlm_name: str = "embedded"
    """The VLM's name on the command line."""

    @cached_property
    def outputs(self) -> BaseOutputs:
        """The base model's outputs on probes, which all tabs share."""
        return BaseOutputs(self.start.base, memory_bytes=MEMORY_BYTES)

    def session(self, session: Session | None = None) -> Session:
        """Return the session of a tab; a new one, with a question asked, for a tab that was just
        opened.
        """
        if session is not None:
            return session
        first = self.pictures.first()
        case = None if first is None else probed(first.case.request, self.pictures)
        return Session(
            self.start.base,
            tuple(self.start.edits),
            case=case,
            asked=case.request if case else None,
        )

    def methods(self) -> tuple[Method, ...]:
        """Return the methods of the list; editors that were fitted meanwhile are found."""
        return list_methods(
            self.vlm_name,
            editors_dir=self.editors_dir,
            given=self.editors,
            overrides=self.overrides,
        )

    def check_editors(self) -> None:
        """Raise an error for settings that do not fit a method, and for a damaged editor that was
        named; called before the page is opened.
        """
        for method in self.methods():
            is_named = method.name in self.editors or method.name in READY
            if is_named and not method.advice:
                method.editor(self.start.base).require_fits(self.start.base)

    def ask(self, session: Session, fields: Fields) -> Session:
        """Return the session with this question asked. Raises DataError, ImageError."""
        asked = question_of(fields)
        require_askable(session.base, [asked], new_tokens=1)
        return session.asking(asked)

    def answers(self, session: Session) -> Answers | None:
        """Return the answers of the base and of the edited model to the session's question, or None
        if nothing was asked. One generation of each.
        """
        asked = session.asked
        if asked is None:
            return None
        models = [session.base, *([session.vlm] if session.held else [])]
        said = [vlm.ask(asked.prompt, asked.image, max_new_tokens=NEW_TOKENS) for vlm in models]
        edited = said[1] if session.held else None
        return Answers(prompt=asked.prompt, base=said[0], edited=edited)

    def edit(self, session: Session, fields: Fields, method: object) -> tuple[Session, float]:
        """Return the session with one more edit, and the seconds that the edit took."""
        case = case_of(fields, self.pictures)
        require_askable(session.base, [case.request], new_tokens=1)
        editor = method_named(method, self.methods()).editor(session.base)
        editor.require_fits(session.base)
        begun = time.perf_counter()
        made = editor.edit(session.vlm, [case.request], name=session.next_name())
        seconds = time.perf_counter() - begun
        return session.adding([made], case=case), seconds

    def changes(self, session: Session) -> tuple[Change, ...]:
        """Return the probes of the session's case, asked of its edited model as it is now."""
        if session.case is None:
            return ()
        return changes(self.outputs, session.vlm, session.case)

    def save(self, session: Session, name: object) -> Path:
        """Save all held edits as one folder, and return it."""
        if not session.held:
            raise EditError("The edited model holds no edit. Make an edit first, then save it.")
        path = self.folders.to_save(name)
        session.vlm.save(path)
        return path

    def export(self, session: Session, name: object, form: object) -> tuple[Export, Path]:
        """Export the edited model, and return what was seen when it was opened, and its folder."""
        path = self.folders.to_export(name)
        return export(session, self.pictures.cases, path, form), path

    def load(self, session: Session, name: object) -> tuple[Session, tuple[Edit, ...]]:
        """Return the session with the edits of a saved folder added, and these edits."""
        parts = load_edit(self.folders.to_load(name)).parts
        asked = [edit.requests[0] for edit in parts if edit.requests]
        case = probed(asked[-1], self.pictures) if asked else None
        return session.adding(parts, case=case), parts
