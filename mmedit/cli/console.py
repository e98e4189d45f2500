"""What all commands share: the app, the consoles, options that several of them take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Edit knowledge in vision-language models, and measure what else changed.",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

VlmOption = Annotated[
    str, typer.Option("--vlm", help="A name of `mmedit ls vlms`, a model folder, or a hub id.")
]
EditorOption = Annotated[
    str,
    typer.Option(
        "--editor", help="A name of `mmedit ls editors`, a fitted editor's folder, or its hub id."
    ),
]
DatasetOption = Annotated[str, typer.Option("--dataset", help="A name of `mmedit ls datasets`.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: editor.lr=1e-5 (repeatable).")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of cases and training.")]
RunsArgument = Annotated[list[Path], typer.Argument(help="Run folders.")]
