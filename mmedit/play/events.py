"""The actions behind the clicks: the page's values go to one, and its result comes back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from mmedit.errors import MmeditError, one_line
from mmedit.play.actions import Playground
from mmedit.play.exporting import report
from mmedit.play.layout import Page, edit_choices, edits_label
from mmedit.play.methods import method_named
from mmedit.play.questions import Fields, opened
from mmedit.play.render import answers_html, changes_html, note_html
from mmedit.play.session import Session

logger = logging.getLogger(__name__)
Updates = Mapping[Any, Any]
"""New values of components; those that are not named stay as they are."""


@dataclass(frozen=True)
class Events:
    """The actions of one page. Each returns the new values of components."""

    playground: Playground
    page: Page

    def picked(self, session: Session | None, event: gr.SelectData) -> Updates:
        """Fill in a picture of the dataset with its question, and ask it."""
        page, picture = self.page, self.playground.pictures[int(event.index)]
        fields = picture.fields
        asked = self.playground.session(session).asking(picture.case.request)
        return self._shown(asked, changes=False) | {
            page.image: picture.image,
            page.prompt: fields.prompt,
            page.target: fields.target,
            page.rephrase: fields.rephrase,
        }

    def dropped(self, image: Any) -> Updates:
        """Empty what belongs to the picture that was there before, and look at the new one."""
        if path := _path(image):
            opened(path)
        return {self.page.rephrase: "", self.page.answers: ""}

    def ask(self, session: Session | None, image: Any, prompt: str) -> Updates:
        """Ask the question on the page."""
        fields = Fields(prompt=prompt, image=_path(image))
        asked = self.playground.ask(self.playground.session(session), fields)
        return self._shown(asked, changes=False)

    def make(self, session: Session | None, image: Any, *texts: str) -> Updates:
        """Make the edit on the page, and test it."""
        prompt, target, rephrase, method = texts
        fields = Fields(prompt=prompt, image=_path(image), target=target, rephrase=rephrase)
        begun = self.playground.session(session)
        edited, seconds = self.playground.edit(begun, fields, method)
        found = self.playground.changes(edited)
        said = f"{edited.edits[-1].name} was made in {seconds:.2f} s. Step 3 shows what changed."
        return self._shown(edited, changes=found) | {self.page.make_note: note_html(said)}

    def choose(self, title: str) -> Updates:
        """Say what is to be done first, if the chosen method cannot edit yet."""
        method = method_named(title, self.playground.methods())
        return {self.page.make_note: note_html(method.advice, kind="fault")}

    def hold(self, session: Session | None, names: list[str]) -> Updates:
        """Take out the edits that are not ticked."""
        return self._shown(self.playground.session(session).holding(names))

    def undo(self, session: Session | None) -> Updates:
        """Take out the last edit."""
        before = self.playground.session(session)
        said = (
            f"{before.held[-1].name} is taken out. Tick it to put it back." if before.held else ""
        )
        return self._shown(before.undone()) | {self.page.edits_note: note_html(said)}

    def save(self, session: Session | None, name: str) -> Updates:
        """Save all edits that the edited model holds."""
        current = self.playground.session(session)
        path = self.playground.save(current, name)
        count = len(current.held)
        said = f"Saved {count} edit{'s' * (count > 1)} to {path}."
        return self._saved(path.name) | {self.page.edits_note: note_html(said)}

    def export(self, session: Session | None, name: str, form: str) -> Updates:
        """Export the edited model, and say what was seen when it was opened."""
        made, path = self.playground.export(self.playground.session(session), name, form)
        return {self.page.edits_note: note_html(report(made, path))}

    def load(self, session: Session | None, name: str) -> Updates:
        """Add the edits of a saved folder."""
        loaded, parts = self.playground.load(self.playground.session(session), name)
        said = f"Loaded {len(parts)} edit{'s' * (len(parts) > 1)} from {name}."
        return self._shown(loaded) | {self.page.edits_note: note_html(said)}

    def opened(self) -> Updates:
        """Bring the lists up to date that other tabs and commands add to."""
        titles = [method.title for method in self.playground.methods()]
        return self._saved(None) | {self.page.method: gr.update(choices=titles)}

    def _saved(self, chosen: str | None) -> dict[Any, Any]:
        names = self.playground.folders.saved()
        return {self.page.saved: gr.update(choices=names, value=chosen)}

    def _shown(self, session: Session, *, changes: Any = None) -> dict[Any, Any]:
        """Return the values that show a session. `changes` are those that were just computed; False
        leaves the table as it is.
        """
        page, play = self.page, self.playground
        shown: dict[Any, Any] = {
            page.session: session,
            page.answers: answers_html(play.answers(session)),
            page.edits: gr.update(
                choices=edit_choices(session),
                value=[edit.name for edit in session.held],
                label=edits_label(session),
            ),
        }
        if changes is False:
            return shown
        found = play.changes(session) if changes is None else changes
        return shown | {page.changes: changes_html(found, held=len(session.held))}


def connect(blocks: gr.Blocks, page: Page, playground: Playground) -> None:
    """Connect the components of the page with the actions."""
    events = Events(playground, page)
    state = page.session
    question = [state, page.image, page.prompt]
    filled = [page.image, page.prompt, page.target, page.rephrase]
    shown = [state, page.answers, page.edits]
    whole = [*shown, page.changes]
    on = _Connector(page)
    with blocks:
        on(page.gallery.select, events.picked, [state], [*shown, *filled], page.ask_note)
        for event in (page.image.upload, page.image.clear):
            emptied = [page.rephrase, page.answers]
            on(event, events.dropped, [page.image], emptied, page.ask_note)
        for event in (page.ask.click, page.prompt.submit):
            on(event, events.ask, question, shown, page.ask_note)
        written = [*question, page.target, page.rephrase, page.method]
        for event in (page.make.click, page.target.submit):
            on(event, events.make, written, whole, page.make_note)
        on(page.method.input, events.choose, [page.method], [], page.make_note)
        on(page.edits.input, events.hold, [state, page.edits], whole, page.edits_note)
        on(page.undo.click, events.undo, [state], whole, page.edits_note)
        on(page.save.click, events.save, [state, page.name], [page.saved], page.edits_note)
        exported = [state, page.name, page.export_to]
        on(page.export.click, events.export, exported, [], page.edits_note)
        on(page.load.click, events.load, [state, page.saved], whole, page.edits_note)
        on(blocks.load, events.opened, [], [page.saved, page.method], page.edits_note, "hidden")


@dataclass(frozen=True)
class _Connector:
    """Connects an event so that one action runs at a time, and an error is a sentence."""

    page: Page

    def __call__(
        self,
        event: Callable[..., Any],
        action: Callable[..., Updates],
        inputs: list[Any],
        outputs: list[Any],
        note: gr.HTML,
        progress: Literal["minimal", "hidden"] = "minimal",
    ) -> None:
        event(
            self._guarded(action, note),
            inputs=inputs,
            outputs=[*outputs, *self.page.notes],
            preprocess=False,  # what a browser sends is checked by the actions, in plain sentences
            show_progress=progress,
            concurrency_limit=1,
            concurrency_id="vlm",
            api_visibility="private",
        )

    def _guarded(self, action: Callable[..., Updates], note: gr.HTML) -> Callable[..., Updates]:
        silent = dict.fromkeys(self.page.notes, "")

        def run(*values: Any) -> Updates:
            try:
                return {**silent, **action(*values)}
            except MmeditError as error:
                return {**silent, note: note_html(str(error), kind="fault")}
            except Exception as error:
                logger.exception("an action of the playground failed")
                said = f"This did not work: {one_line(error, 200)}. The terminal says more."
                return {**silent, note: note_html(said, kind="fault")}

        return _with_event(run) if action.__name__ == "picked" else run


def _with_event(run: Callable[..., Updates]) -> Callable[..., Updates]:
    """Return an action that gets the choice in a gallery too; Gradio reads it from the types."""

    def chosen(session: Any, event: gr.SelectData) -> Updates:
        return run(session, event)

    return chosen


def _path(image: Any) -> Path | None:
    """Return the file of the picture on the page; Gradio has checked that it is an upload."""
    path = image.get("path") if isinstance(image, Mapping) else None
    return Path(path) if path else None
