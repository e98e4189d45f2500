"""Parts that all commands share: the app, the consoles, and options that several commands take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from typer.core import TyperGroup
from typer.exceptions import TyperException

from mmedit.catalog import COLUMN_SETS, Kind, names, require_known
from mmedit.errors import UnknownNameError
from mmedit.settings import MAX_SEED
from mmedit.storage import require_path

Name = TypeVar("Name", bound="str | Sequence[str] | None")
LONGEST_ERROR = 300
"""Most characters of an error of use, which repeats what was typed."""


def examples(*commands: str) -> str:
    """Write examples for the end of a command's help, one on each line."""
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in commands)])


class Group(TyperGroup):
    """Commands whose errors of use are never long, whatever was typed."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _shortening():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _shortening():
            return super().invoke(ctx)


@contextmanager
def _shortening() -> Iterator[None]:
    try:
        yield
    except TyperException as error:
        message = getattr(error, "message", "")  # Exit and Abort have none
        if len(message) > LONGEST_ERROR:
            half = LONGEST_ERROR // 2
            error.message = f"{message[:half]}...{message[-half:]}"
        raise


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # "rich" would drop every [word] of the help texts
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Edit knowledge in vision-language models, and measure what else changed.",
    epilog=examples(
        "mmedit demo",
        "mmedit ls",
        "mmedit bench --editor ft --limit 100 --out runs/ft",
        "mmedit table runs/ft",
        "mmedit bench --help",
    ),
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(text: str, *, to: Console = out) -> None:
    """Print text as it is: brackets are no markup, and long lines are not wrapped."""
    to.print(text, markup=False, soft_wrap=True)


def either(choices: Sequence[str]) -> str:
    """Write choices as text, for example "md, latex or csv"."""
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def known(kind: Kind) -> Callable[[Name], Name]:
    """Make the callback of an option that refuses an unknown name before torch is imported."""

    def check(value: Name) -> Name:
        for name in [value] if isinstance(value, str) else value or []:
            require_known(kind, name)
        return value

    return check


def one_of(what: str, choices: Sequence[str]) -> Callable[[Name], Name]:
    """Make the callback of an option that takes one of a few names, or several of them."""

    def check(value: Name) -> Name:
        for name in [value] if isinstance(value, str) else value or []:
            if name not in choices:
                raise UnknownNameError(what, name, choices)
        return value

    return check


def folder(text: str | Path) -> Path:
    """Parse the name of a folder, or take a default as it is.

    An empty name is refused: it would mean the current folder. So is one that no folder can have.
    """
    if not str(text).strip():
        raise typer.BadParameter("the name of a folder is empty")
    require_path(text)
    return Path(text)


def names_of(kind: Kind) -> Callable[[str], list[str]]:
    """Make the completion of a name in the shell."""
    return lambda incomplete: [name for name in names(kind) if name.startswith(incomplete)]


def _print_version(asked: bool) -> None:
    if asked:
        say(f"mmedit {version('mmedit')}")
        raise typer.Exit


@app.callback()
def start(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Edit knowledge in vision-language models, and measure what else changed."""


@app.command("help", hidden=True)
def show_help(
    command: Annotated[list[str] | None, typer.Argument(help="A command.")] = None,
) -> None:
    """Print the help of mmedit or of one command, as --help does."""
    app([*(command or ()), "--help"], prog_name="mmedit")


VlmOption = Annotated[
    str,
    typer.Option(
        "--vlm",
        metavar="NAME",
        help="A name of `mmedit ls vlms`, a model folder, or a hub id.",
        callback=known("vlm"),
        autocompletion=names_of("vlm"),
    ),
]
EditorOption = Annotated[
    str,
    typer.Option(
        "--editor",
        metavar="NAME",
        help="A name of `mmedit ls editors`, a YAML file of this kind, a folder of a fitted "
        "editor, or its hub id.",
        callback=known("editor"),
        autocompletion=names_of("editor"),
    ),
]
DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="A name of `mmedit ls datasets`.",
        callback=known("dataset"),
        autocompletion=names_of("dataset"),
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, for example editor.lr=1e-5 (repeatable).",
    ),
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", min=0, max=MAX_SEED, metavar="N", help="Seed of cases and training."),
]
RunsArgument = Annotated[
    list[Path], typer.Argument(parser=folder, metavar="RUN", help="One or more run folders.")
]
ColumnsOption = Annotated[
    str,
    typer.Option(
        "--columns",
        metavar="SET",
        help=f"Set of scores: {either(COLUMN_SETS)}. `default` is token accuracy (tok) and exact "
        "match (EM).",
        callback=one_of("set of columns", COLUMN_SETS),
        autocompletion=lambda: list(COLUMN_SETS),
    ),
]
