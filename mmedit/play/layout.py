"""The page as Gradio components: three steps, from a question to the edits that were made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.themes import Base

from mmedit.play.actions import Playground
from mmedit.play.exporting import FORMS
from mmedit.play.render import answers_html, changes_html
from mmedit.play.session import Session, label_of

TITLE = "mmedit playground"
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONOSPACED = ("ui-monospace", "Menlo", "Consolas", "monospace")


@dataclass(frozen=True, kw_only=True)
class Page:
    """All components that an action reads or changes."""

    session: gr.State
    gallery: gr.Gallery
    image: gr.Image
    prompt: gr.Textbox
    ask: gr.Button
    answers: gr.HTML
    ask_note: gr.HTML
    target: gr.Textbox
    rephrase: gr.Textbox
    method: gr.Dropdown
    make: gr.Button
    make_note: gr.HTML
    changes: gr.HTML
    edits: gr.CheckboxGroup
    undo: gr.Button
    name: gr.Textbox
    save: gr.Button
    saved: gr.Dropdown
    load: gr.Button
    export_to: gr.Dropdown
    export: gr.Button
    edits_note: gr.HTML

    @property
    def notes(self) -> tuple[gr.HTML, ...]:
        """The places where an action says what it did."""
        return (self.ask_note, self.make_note, self.edits_note)


def theme() -> Any:
    """Return the look of the page. Its fonts are those of the system: none is fetched."""
    return Base(primary_hue="blue", neutral_hue="slate", font=[*FONTS], font_mono=[*MONOSPACED])


def build(playground: Playground) -> tuple[gr.Blocks, Page]:
    """Return the page, which opens on a question that is already answered."""
    opening = playground.session()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        session = gr.State(None)
        _head(playground)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                asking = _ask_step(playground, opening)
                making = _edit_step(playground)
            with gr.Column(scale=8, min_width=320):
                changes = _changes_step(playground, opening)
                kept = _edits_step(playground, opening)
    return blocks, Page(session=session, changes=changes, **asking, **making, **kept)


def edit_choices(session: Session) -> list[tuple[str, str]]:
    """Return the edits of a session as choices of the list."""
    return [(label_of(edit), edit.name) for edit in session.edits]


def edits_label(session: Session) -> str:
    """Return the label of the list of edits."""
    rest = "untick one to take it out" if session.edits else "none yet"
    return f"Edits of this tab: {rest}"


def _head(playground: Playground) -> None:
    gr.HTML(
        "<h1>mmedit playground</h1><p>Ask a vision-language model, change one of its answers, and "
        "see what else changed.</p>",
        elem_id="head",
    )


def _step(number: int, title: str) -> None:
    gr.HTML(f"<h2>{number}. {title}</h2>", elem_classes="step")


def _gallery(playground: Playground) -> gr.Gallery:
    images = [one.image for one in playground.pictures]
    return gr.Gallery(
        images,
        label="Pictures of the dataset: pick one",
        format="png",
        columns=8,
        height="auto",
        object_fit="contain",
        allow_preview=False,
        buttons=[],
        interactive=False,
        elem_id="gallery",
        visible=bool(images),
    )


def _ask_step(playground: Playground, opening: Session) -> dict[str, Any]:
    _step(1, "Ask")
    gallery = _gallery(playground)
    first = playground.pictures.first()
    image = gr.Image(
        first.image if first else None,
        label="Picture: drop your own here, or paste it",
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard"],
        buttons=[],
        height=190,
        alt_text="The picture that the question is about",
        elem_id="picture",
    )
    prompt = gr.Textbox(
        first.fields.prompt if first else "",
        label="Question",
        placeholder="What animal is this?",
        max_lines=3,
        elem_id="question",
    )
    ask = gr.Button("Ask", variant="secondary", size="md", elem_id="ask")
    note = gr.HTML(elem_id="ask-note", elem_classes="note-slot")
    answers = gr.HTML(answers_html(playground.answers(opening)), elem_id="answers")
    return {
        "gallery": gallery, "image": image, "prompt": prompt, "ask": ask, "ask_note": note,
        "answers": answers,
    }  # fmt: skip


def _edit_step(playground: Playground) -> dict[str, Any]:
    _step(2, "Change the answer")
    first = playground.pictures.first()
    titles = [method.title for method in playground.methods()]
    with gr.Row():
        target = gr.Textbox(
            first.fields.target if first else "",
            label="New answer",
            placeholder="dog",
            max_lines=3,
            min_width=120,
            elem_id="target",
        )
        rephrase = gr.Textbox(
            first.fields.rephrase if first else "",
            label="In other words",
            max_lines=3,
            min_width=200,
            elem_id="rephrase",
        )
    method = gr.Dropdown(titles, value=titles[0], label="Method", elem_id="method")
    make = gr.Button("Make the edit", variant="primary", elem_id="make")
    note = gr.HTML(elem_id="make-note", elem_classes="note-slot")
    return {"target": target, "rephrase": rephrase, "method": method, "make": make,
            "make_note": note}  # fmt: skip


def _changes_step(playground: Playground, opening: Session) -> gr.HTML:
    _step(3, "What changed")
    shown = changes_html(playground.changes(opening), held=len(opening.held))
    return gr.HTML(shown, elem_id="changes")


def _edits_step(playground: Playground, opening: Session) -> dict[str, Any]:
    _step(4, "Keep the edits, or take them out")
    edits = gr.CheckboxGroup(
        edit_choices(opening),
        value=[edit.name for edit in opening.held],
        label=edits_label(opening),
        elem_id="edits",
    )
    undo = gr.Button("Undo the last edit", size="md", elem_id="undo")
    with gr.Row(equal_height=True, elem_id="keep"):
        with gr.Column(min_width=180):
            name = gr.Textbox("my-edit", label="Name to save under", max_lines=1, elem_id="name")
            save = gr.Button("Save the edits", size="md", elem_id="save")
        with gr.Column(min_width=180):
            saved = gr.Dropdown(
                playground.folders.saved(),
                value=None,
                label="Saved edits",
                elem_id="saved",
            )
            load = gr.Button("Load", size="md", elem_id="load")
        with gr.Column(min_width=180):
            export_to = gr.Dropdown(
                [(title, form) for form, title in FORMS.items()],
                value="transformers",
                label="Export as",
                interactive=True,
                elem_id="export-to",
            )
            export = gr.Button("Export the edited model", size="md", elem_id="export")
    note = gr.HTML(elem_id="edits-note", elem_classes="note-slot")
    return {
        "edits": edits, "undo": undo, "name": name, "save": save, "saved": saved, "load": load,
        "export_to": export_to, "export": export, "edits_note": note,
    }  # fmt: skip
