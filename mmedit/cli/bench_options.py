"""Options of `mmedit bench`, some of which other commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmedit.catalog import MODES, names
from mmedit.cli.console import either, folder, known, one_of
from mmedit.errors import ConfigError


def _table(value: str | None) -> str | None:
    """Check the table's name: a word after a flag lands here."""
    if value in ("true", "false", "True", "False", "yes", "no"):
        raise ConfigError(
            f"{value!r} was read as the name of a table; --generate and --no-generate take no value"
        )
    return known("table")(value)


TableArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="TABLE",
        help=f"A whole table: {either(names('table'))}, or a file of this kind.",
        callback=_table,
    ),
]
BlockOption = Annotated[
    list[str] | None,
    typer.Option(
        "--block",
        metavar="NAME",
        help="Run this block of the table (repeatable).",
        show_default="all",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        parser=folder,
        metavar="DIR",
        help="Folder of the run. A run that was stopped in it is continued.",
        show_default="runs/TABLE for a table, else required",
    ),
]
VlmOption = Annotated[
    str | None,
    typer.Option(
        "--vlm",
        metavar="NAME",
        help="A name of `mmedit ls vlms`, a model folder, or a hub id.",
        show_default="embedded",
        callback=known("vlm"),
    ),
]
EditorOption = Annotated[
    list[str] | None,
    typer.Option(
        "--editor",
        metavar="NAME",
        help=f"An editor (repeatable): {either(names('editor'))}; a YAML file of this kind; or the "
        "folder or hub id of a fitted one.",
        show_default="mend",
        callback=known("editor"),
    ),
]
DatasetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help=f"A dataset (repeatable): {either(names('dataset'))}.",
        show_default="easyvqa",
        callback=known("dataset"),
    ),
]
ModeOption = Annotated[
    str | None,
    typer.Option(
        "--mode",
        metavar="MODE",
        help=f"How edits are made: {either(MODES)}. For batch: --set batch.k=10.",
        show_default="independent",
        callback=one_of("mode", MODES),
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Use at most this many test cases.",
        show_default="all; for a table, its own",
    ),
]
TrainLimitOption = Annotated[
    int | None,
    typer.Option(
        "--train-limit",
        min=1,
        metavar="N",
        help="Let editors learn from at most this many training cases.",
        show_default="all; for a table, its own",
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=100_000,
        metavar="N",
        help="Separate edits per pass. No result depends on it.",
        show_default="the VLM's own, in configs/vlm",
    ),
]
LatencyOption = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Also time N edits of each editor one at a time, without probes. The table shows the "
        "median and the 95th percentile.",
    ),
]
ContradictionOption = Annotated[
    str | None,
    typer.Option(
        "--on-contradiction",
        metavar="WHAT",
        help="error: refuse a run in which one edit changes what another edit's probe asks; skip: "
        "leave these probes out, and count them under the table. Separate edits are never refused.",
        show_default="error",
        callback=one_of("way with contradictions", ("error", "skip")),
    ),
]
GenerateOption = Annotated[bool, typer.Option(help="Let the VLM answer freely too.")]
