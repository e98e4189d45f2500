"""Values of the playground as HTML. Every text is escaped: prompts and answers are data."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from mmedit.play.actions import Answers
from mmedit.play.changes import Change, summary

HERE = Path(__file__).parent
THUMBNAIL_PIXELS = 96


def stylesheet() -> str:
    """Return the style of the page."""
    return (HERE / "style.css").read_text(encoding="utf-8")


def answers_html(found: Answers | None) -> str:
    """Return the answers of the base and the edited model side by side; "" if nothing was asked."""
    return _template("answers.html.j2").render(found=found) if found else ""


def changes_html(found: Sequence[Change], *, held: int) -> str:
    """Return the table of all probes before and after; `held` is the number of held edits."""
    return _template("changes.html.j2").render(found=found, held=held, summary=summary(found))


def note_html(text: str = "", *, kind: str = "done") -> str:
    """Return what an action did, or why it did not, for a screen reader too.

    >>> note_html("Saved.")
    '<p class="note done" role="status">Saved.</p>'
    """
    return _template("note.html.j2").render(text=text, kind=kind).strip()


@cache
def _template(name: str) -> Template:
    # No data reaches the choice of a template, and everything in one is escaped.
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "thumbnail": _thumbnail}
    return environment.get_template(name)


def _percent(score: float | None) -> str:
    return "–" if score is None else f"{100 * score:.0f}"


def _thumbnail(image: Image.Image) -> str:
    """Return a small copy of an image as a data URI."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = BytesIO()
    small.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
