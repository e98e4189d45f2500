"""A conversation with an edited VLM, as a value: every line gives the next session and a text.

    step = answer_line(session, "what color is the shape?")
    step.said                       "red"
    step.session                    the session after it

A line that begins with / is a command (`COMMANDS`); every other line is a question. Nothing is read
or printed here.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from mmedit.cases import Example
from mmedit.editors.base import Editor
from mmedit.edits.loading import load_edit
from mmedit.errors import ConfigError, DataError, EditError, UnknownNameError
from mmedit.images import open_image
from mmedit.vlm.edit import Edit, Seen
from mmedit.vlm.interface import VLM


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question that was asked, with its answer."""

    question: str
    answer: str
    image: Path | None = None


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Session:
    """The VLM with its edits, the image that questions are about, and what was asked."""

    vlm: VLM
    editor: Editor
    """The editor of /edit."""
    image: Path | None = None
    asked: tuple[Asked, ...] = ()
    max_new_tokens: int = 64
    compares: bool = False
    """Whether the base model answers every question too."""

    def ask(self, vlm: VLM, question: str, image: Path | None) -> str:
        """Return the answer of a VLM in one line. Raises DataError, ImageError, ModelError."""
        answer = vlm.ask(question, image, max_new_tokens=self.max_new_tokens)
        return " ".join(answer.split()) or "(no answer)"


@final
@dataclass(frozen=True, eq=False)
class Step:
    """The result of one line."""

    session: Session
    said: str = ""
    """Text for the person; "" for none."""
    ends: bool = False
    """Whether the session is over."""


Command = Callable[[Session, str], Step]


def answer_line(session: Session, line: str) -> Step:
    """Return the next session and the text that answers a line; an empty line changes nothing.

    Raises an MmeditError for wrong input; the session then stays as it is.
    """
    text = line.strip()
    if not text:
        return Step(session)
    if not text.startswith("/"):
        return _ask(session, text)
    name, _, rest = text.partition(" ")
    if name not in COMMANDS:
        raise UnknownNameError("command", name, COMMANDS)
    return COMMANDS[name](session, rest.strip())


def _ask(session: Session, question: str) -> Step:
    answer = session.ask(session.vlm, question, session.image)
    asked = Asked(question=question, answer=answer, image=session.image)
    said = answer
    if session.compares:
        base = session.ask(session.vlm.base, question, session.image)
        said = side_by_side(base, answer)
    return Step(replace(session, asked=(*session.asked, asked)), said)


def side_by_side(base: str, edited: str) -> str:
    """Return two answers, below each other with their names."""
    same = "  (the same)" if base == edited else ""
    return f"base model:    {base}\nedited model:  {edited}{same}"


def _compare(session: Session, rest: str) -> Step:
    last = None if rest else _last(session)
    question = last.question if last else rest
    image = last.image if last else session.image
    base = session.ask(session.vlm.base, question, image)
    edited = session.ask(session.vlm, question, image)
    asked = Asked(question=question, answer=edited, image=image)
    now = replace(session, asked=(*session.asked, asked)) if rest else session
    return Step(now, side_by_side(base, edited))


def _image(session: Session, rest: str) -> Step:
    if not rest:
        shown = session.image or "none; name one: /image FILE"
        return Step(session, f"image: {shown}")
    if rest.lower() == "none":
        return Step(replace(session, image=None), "questions have no image now")
    path = typed_path(rest)
    open_image(path)
    return Step(replace(session, image=path), f"questions are about {path} now")


def typed_path(text: str) -> Path:
    """Return a path as a person types it, or drops it on a terminal: maybe quoted or escaped."""
    path = Path(text)
    try:
        path = path.expanduser()
        parts = [] if path.exists() else shlex.split(text)
        return Path(parts[0]).expanduser() if len(parts) == 1 else path
    except (OSError, RuntimeError, ValueError):  # too long; no such user; a quotation mark alone
        return path


def _edit(session: Session, rest: str) -> Step:
    last = _last(session)
    if not rest:
        raise ConfigError(f"name the new answer to {last.question!r}: /edit NEW ANSWER")
    request = Example(prompt=last.question, target=rest, image=last.image)
    for fault in session.vlm.frozen.faults([request]):
        if fault is not None:
            raise DataError(fault)
    edit = session.editor.edit(session.vlm, [request])
    after = session.ask(session.vlm.with_edit(edit), last.question, last.image)
    before = session.ask(session.vlm, last.question, last.image)
    seen = Seen(
        prompt=last.question,
        target=rest,
        before=before,
        after=after,
        has_image=last.image is not None,
    )
    edited = session.vlm.with_edit(replace(edit, seen=(seen,)))
    asked = Asked(question=last.question, answer=after, image=last.image)
    said = f"{edited.edits[-1].name}: {before} -> {after}  (/undo takes it out, /save DIR keeps it)"
    return Step(replace(session, vlm=edited, asked=(*session.asked, asked)), said)


def _load(session: Session, rest: str) -> Step:
    if not rest:
        raise ConfigError("name the folder of an edit, or its hub id: /load DIR")
    path = typed_path(rest)
    edit = load_edit(path if path.is_dir() else rest)
    edited = session.vlm.with_edit(edit)
    new = edited.edits[len(session.vlm.edits) :]
    said = "\n".join([f"added {_described(one)}" for one in new] + made_without(edited.edits, new))
    return Step(replace(session, vlm=edited), said)


def _save(session: Session, rest: str) -> Step:
    overwrite = rest.startswith("--overwrite ")
    name = rest.removeprefix("--overwrite ").strip()
    if not name:
        raise ConfigError("name a new folder: /save DIR (/save --overwrite DIR replaces an edit)")
    if not session.vlm.edits:
        raise EditError("there are no edits to save; make one with /edit NEW ANSWER")
    path = typed_path(name)
    session.vlm.save(path, overwrite=overwrite)
    return Step(session, f"saved {_number(len(session.vlm.edits))} in {path}")


def _edits(session: Session, rest: str) -> Step:
    found = session.vlm.edits
    lines = [f"{number}  {_described(edit)}" for number, edit in enumerate(found, start=1)]
    return Step(session, "\n".join(lines) or "no edits; make one with /edit NEW ANSWER")


def _undo(session: Session, rest: str) -> Step:
    if not session.vlm.edits:
        raise EditError("there are no edits to take out")
    name = rest or session.vlm.edits[-1].name
    vlm = session.vlm.without(name)
    left = _number(len(vlm.edits)) if vlm.edits else "no edits"
    return Step(replace(session, vlm=vlm), f"took out {name}; {left} left")


def _history(session: Session, rest: str) -> Step:
    lines = [
        f"{one.question}{f' ({one.image.name})' if one.image else ''}  ->  {one.answer}"
        for one in session.asked
    ]
    return Step(session, "\n".join(lines) or "nothing was asked yet")


def _help(session: Session, rest: str) -> Step:
    return Step(session, HELP)


def _quit(session: Session, rest: str) -> Step:
    return Step(session, ends=True)


COMMANDS: Mapping[str, Command] = {
    "/image": _image,
    "/edit": _edit,
    "/undo": _undo,
    "/compare": _compare,
    "/edits": _edits,
    "/load": _load,
    "/save": _save,
    "/history": _history,
    "/help": _help,
    "/quit": _quit,
}
"""Commands of a session, by their name."""
HELP = """\
a line           is a question; the VLM answers it
/image FILE      ask about this image from now on; /image none: without image
/edit ANSWER     make an edit: the last question shall have this answer
/undo [NAME]     take the last edit out, or the one of this name
/compare [TEXT]  the last question, or a new one, answered by the base and the edited model
/edits           list the edits
/load DIR        add a saved edit
/save DIR        save all edits in a new folder
/history         questions and answers so far
/quit            end (also Ctrl+D)"""


def made_without(edits: Sequence[Edit], new: Sequence[Edit]) -> list[str]:
    """Return notes about new edits that were made on edits which do not stand before them."""
    lacking: dict[tuple[str, ...], list[str]] = {}
    there: set[str] = set()
    for edit in edits:
        absent = tuple(name for name in edit.on if name not in there)
        if absent and any(edit is one for one in new):
            lacking.setdefault(absent, []).append(edit.name)
        there.add(edit.name)
    return [
        f"note: {_some(made)} {'was' if len(made) == 1 else 'were'} made on {_some(absent)}, which "
        f"{'is' if len(absent) == 1 else 'are'} not there before; the answers may differ from "
        "those of that time"
        for absent, made in lacking.items()
    ]


def _some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _last(session: Session) -> Asked:
    if not session.asked:
        raise ConfigError("nothing was asked yet; ask a question first")
    return session.asked[-1]


def _described(edit: Edit) -> str:
    if len(edit.requests) != 1:
        return f"{edit.name}: {edit.label}, {len(edit.requests)} requests"
    [request] = edit.requests
    return f"{edit.name}: {edit.label}, {request.prompt!r} -> {request.target!r}"


def _number(count: int) -> str:
    return "1 edit" if count == 1 else f"{count} edits"
