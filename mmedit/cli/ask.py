"""Questions to a VLM with its edits: one, or a conversation."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mmedit.cli.console import SetOption, app, err, examples, known, out, say
from mmedit.cli.edit_folders import OptionalVlmOption, edit_folders, vlm_of, with_edits
from mmedit.cli.fit import load_vlm, read_settings
from mmedit.errors import ConfigError, DataError, MmeditError, UnknownNameError

if TYPE_CHECKING:  # imports torch
    from mmedit.cli.session import Session
    from mmedit.editors.base import Editor
    from mmedit.settings import Overrides
    from mmedit.vlm.edit import Edit

PROMPT = "> "
EDITOR = "ft"
"""The editor of /edit, unless another one is named."""


@app.command(
    epilog=examples(
        'mmedit ask --edit edits/dog --image cat.png "What animal is this?"',
        'mmedit ask --edit edits/dog --edit edits/rome --compare "The capital of France is"',
        "mmedit ask --edit edits/dog",
        "mmedit ask --edit edits/dog --image cat.png < questions.txt",
    )
)
def ask(
    question: Annotated[
        str | None,
        typer.Argument(metavar="[QUESTION]", help="Without a question, a conversation begins."),
    ] = None,
    edit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Add a saved edit, a folder or a hub id (repeatable).",
            show_default="the base model",
            autocompletion=edit_folders,
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Leave out one of the edits (repeatable).", show_default="none"
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The image of the question.", show_default="none"),
    ] = None,
    vlm: OptionalVlmOption = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")
    ] = 64,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show the answer of the base model too.")
    ] = False,
    editor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The editor of /edit: a name, or the folder of a fitted editor.",
            callback=known("editor"),
            show_default=EDITOR,
        ),
    ] = None,
    settings: SetOption = None,
) -> None:
    """Ask a VLM with saved edits one question, or talk to it.

    In a conversation a line is a question, /edit ANSWER makes an edit, /undo takes it out, and
    /help lists all commands. Input from a pipe is read line by line; then the exit code is 2 if a
    line was wrong.
    """
    from mmedit.cli.session import Session, made_without, side_by_side
    from mmedit.config import load_vlm_file
    from mmedit.edits.loading import load_edit
    from mmedit.images import open_image

    _require_question(question, editor)
    if image is not None:
        open_image(image)
    edits = [load_edit(path) for path in edit or ()]
    _require_names(edits, without or ())
    vlm = vlm or vlm_of(edits)
    unused = ("generation", "dataset", "vlm.batch_size", *(["editor"] if question else []))
    overrides = read_settings(vlm, editor or EDITOR, settings, without=unused)
    vlm_file = load_vlm_file(vlm, overrides.of("vlm"))
    method = None if question else _editor(editor or EDITOR, vlm, overrides)
    loaded = with_edits(load_vlm(vlm, vlm_file), edits)
    for name in dict.fromkeys(without or ()):
        loaded = loaded.without(name)
    for note in made_without(loaded.edits, loaded.edits):
        say(note, to=err)
    if method is not None:
        method.require_fits(loaded)
        session = Session(
            vlm=loaded, editor=method, image=image, max_new_tokens=max_new_tokens, compares=compare
        )
        _converse(session)
        return
    answer = loaded.ask(question or "", image, max_new_tokens=max_new_tokens)
    if compare:
        base = loaded.base.ask(question or "", image, max_new_tokens=max_new_tokens)
        answer = side_by_side(base, answer)
    _print(answer)


def _require_question(question: str | None, editor: str | None) -> None:
    if question is None:
        return
    if not question.strip():
        raise DataError("the question is empty; leave it out for a conversation")
    if editor is not None:
        raise ConfigError(
            "--editor makes the edits of a conversation, and this is one question; leave it out"
        )


def _require_names(edits: Sequence[Edit], without: Sequence[str]) -> None:
    """Raise UnknownNameError for an edit to leave out that would not be there."""
    from mmedit.vlm.edit import with_own_name

    there: tuple[Edit, ...] = ()
    for part in (part for edit in edits for part in edit.parts):
        there = with_own_name(there, part)
    names = [edit.name for edit in there]
    for name in without:
        if not names:
            raise ConfigError(
                f"--without {name} leaves out one of the edits; name them with --edit"
            )
        if name not in names:
            raise UnknownNameError("edit among those of --edit", name, names)


def _editor(name: str, vlm: str, overrides: Overrides) -> Editor:
    """Return the editor of /edit. Raises ConfigError if it must be fitted first."""
    from mmedit.config import load_editors

    [method] = load_editors([name], vlm, overrides).values()
    if method.needs_fit and not method.is_fitted:
        raise ConfigError(
            f"{name} must be fitted before it can edit: mmedit fit --editor {name} --vlm {vlm} "
            f"--out editors/{name}; then mmedit ask --editor editors/{name}"
        )
    return method


def _converse(session: Session) -> None:
    """Answer line after line until the input ends. Wrong input is one message."""
    from mmedit.cli.session import answer_line

    is_terminal = sys.stdin.isatty()
    if is_terminal:
        say(_greeting(session))
    failed = False
    for line in _typed() if is_terminal else _piped():
        try:
            step = answer_line(session, line)
            session = step.session
            if step.said:
                _print(step.said)
            if step.ends:
                break
        except MmeditError as error:
            failed = True
            err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            say("Stopped.", to=err)
    if failed and not is_terminal:
        raise typer.Exit(2)


def _greeting(session: Session) -> str:
    edits = ", ".join(edit.name for edit in session.vlm.edits) or "no edits"
    image = f", image {session.image}" if session.image else ""
    return f"{session.vlm.name}: {edits}{image}. Ask a question, or /help for the commands."


def _typed() -> Iterator[str]:
    """Yield lines from a terminal, with the arrow keys for earlier ones; Ctrl+C drops a line."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # `input` then has line editing and history
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()


def _piped() -> Iterator[str]:
    """Yield lines from a pipe or a file. Bytes that are not UTF-8 are an error of their line."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    yield from sys.stdin


def _print(text: str) -> None:
    """Print an answer at once: another program may wait for it."""
    from mmedit.cli.edit_views import plain

    say("\n".join(plain(line) for line in text.splitlines()))
    out.file.flush()
