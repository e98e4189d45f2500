"""Edits as a transformers folder, or as adapters of PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mmedit.cli.console import (
    DatasetOption,
    SeedOption,
    SetOption,
    app,
    err,
    examples,
    folder,
    one_of,
    out,
    say,
)
from mmedit.cli.edit_folders import OptionalVlmOption, vlm_of, with_edits
from mmedit.cli.progress import show_progress
from mmedit.errors import ConfigError, LostEditError, one_line
from mmedit.progress import Progress
from mmedit.settings import Overrides

if TYPE_CHECKING:  # imports torch
    from mmedit.cases import Example
    from mmedit.export.check import Changed
    from mmedit.export.report import Export
    from mmedit.vlm.edit import Edit
    from mmedit.vlm.interface import VLM

LOADING = "loading the VLM"
FORMS = ("transformers", "peft")
DTYPES = ("float32", "bfloat16", "float16")
HEADINGS = ("opened in", "largest logit difference", "requests kept", "other answers changed")
SHOWN = 5
"""Changed answers that are printed in full."""

EditsOption = Annotated[
    list[str],
    typer.Option(
        "--edit",
        metavar="DIR",
        help="The folder of a saved edit, or its hub id (repeatable; they are added in order).",
    ),
]
ToOption = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="FORM",
        help="transformers: a whole model folder; peft: a LoRA adapter.",
        callback=one_of("form of an export", FORMS),
    ),
]
OutOption = Annotated[
    Path, typer.Option("--out", parser=folder, metavar="DIR", help="New folder for the export.")
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="transformers: number format of the weights: float32, bfloat16 or float16.",
        show_default="that of the loaded VLM",
        callback=one_of("dtype of an export", DTYPES),
    ),
]


@app.command(
    "export",
    epilog=examples(
        "mmedit export --edit edits/x --to transformers --out models/edited",
        "mmedit export --edit edits/x --to transformers --dtype bfloat16 --keep-float32 --out ...",
        "mmedit export --edit edits/x --edit edits/y --to peft --each --out adapters",
    ),
)
def export_edits(
    edits: EditsOption,
    to: ToOption,
    out_folder: OutOption,
    vlm: OptionalVlmOption = None,
    dtype: DtypeOption = None,
    keep_float32: Annotated[
        bool,
        typer.Option(
            "--keep-float32",
            help="transformers: store the edited weights in float32, the others in --dtype. The "
            "folder then opens in float32.",
        ),
    ] = False,
    check_in: Annotated[
        list[str] | None,
        typer.Option(
            "--check-in",
            metavar="DTYPE",
            help="transformers: open the folder in this dtype too (repeatable).",
            show_default="bfloat16, if it is stored in float32",
        ),
    ] = None,
    shard_size: Annotated[
        str,
        typer.Option("--shard-size", metavar="SIZE", help="transformers: largest weight file."),
    ] = "5GB",
    rank: Annotated[
        int,
        typer.Option("--rank", min=1, metavar="N", help="peft: largest rank of a dense edit (FT)."),
    ] = 64,
    each: Annotated[
        bool, typer.Option("--each", help="peft: write an adapter for each edit, not one for all.")
    ] = False,
    dataset: DatasetOption = "easyvqa",
    locality: Annotated[
        int,
        typer.Option("--locality", min=0, metavar="N", help="Unrelated questions to ask as well."),
    ] = 20,
    allow_lost: Annotated[
        bool,
        typer.Option("--allow-lost", help="Keep the export if it lost an edit."),
    ] = False,
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Write edits into a model folder that needs no mmedit, or as LoRA adapters.

    The export is opened with transformers or peft and asked the requests of the edits and unrelated
    questions of --dataset. If a request is answered differently, the export is removed, and the
    exit code is 2.
    """
    from mmedit.export.adapter import AdapterForm, export_peft
    from mmedit.export.folder import FolderForm, export_transformers

    overrides = _overrides(settings)
    folder_form = FolderForm(
        dtype=dtype,
        keep_float32=keep_float32,
        shard_size=shard_size,
        check_in=tuple(check_in or ()),
    )
    _require_used(to, folder_form != FolderForm(), each or rank != AdapterForm().rank)
    loaded = _load_edits(edits)
    questions = _locality(dataset, overrides, locality, seed)
    vlm = vlm or vlm_of(loaded)
    try:
        with show_progress(err) as progress:

            def load() -> VLM:
                return _edited(vlm, overrides, loaded, progress)

            if to == "peft":
                export = export_peft(
                    load, out_folder, questions, form=AdapterForm(rank=rank, each=each),
                    allow_lost=allow_lost, progress=progress,
                )  # fmt: skip
            else:
                export = export_transformers(
                    load, out_folder, questions, form=folder_form,
                    allow_lost=allow_lost, progress=progress,
                )  # fmt: skip
    except LostEditError as error:
        _print_checks(error.report)
        raise
    _print_checks(export)
    _print_next(export)


def _overrides(settings: Sequence[str] | None) -> Overrides:
    """Read `--set`. Raises ConfigError for settings that this command does not read."""
    from mmedit.config import read_overrides

    overrides = read_overrides(settings or ())
    for part in overrides.parts:
        if part not in ("vlm", "dataset"):
            raise ConfigError(f"--set {part}.* has no effect on this command; leave it out")
    return overrides


def _require_used(to: str, for_folders: bool, for_adapters: bool) -> None:
    """Raise ConfigError for options of the other form."""
    if to == "peft" and for_folders:
        raise ConfigError(
            "--dtype, --keep-float32, --check-in and --shard-size are for --to transformers; an "
            "adapter is stored in float32 and has no use for them"
        )
    if to == "transformers" and for_adapters:
        raise ConfigError("--rank and --each are for --to peft; leave them out")


def _load_edits(paths: Sequence[str]) -> list[Edit]:
    """Load the edits, and refuse those that are no change of weights before any model is loaded."""
    from mmedit.edits.loading import load_edit
    from mmedit.export.report import require_weights

    edits = [load_edit(path) for path in paths]
    for edit in edits:
        require_weights(edit)
    return edits


def _locality(dataset: str, overrides: Overrides, number: int, seed: int) -> Sequence[Example]:
    """Return unrelated questions from the test cases of a dataset."""
    from mmedit.config import read_cases
    from mmedit.export.check import locality_questions

    cases = read_cases(dataset, "test", overrides.of("dataset"), limit=max(number, 1), seed=seed)
    return locality_questions(cases, number)


def _edited(vlm: str, overrides: Overrides, edits: Sequence[Edit], progress: Progress) -> VLM:
    """Load the VLM with the edits. Nothing here keeps it."""
    from mmedit.cli.fit import silence_transformers
    from mmedit.config import load_vlm_file, load_vlm_of

    silence_transformers()
    progress(LOADING, 0, 1, "")
    edited = with_edits(load_vlm_of(vlm, load_vlm_file(vlm, overrides.of("vlm"))), edits)
    progress(LOADING, 1, 1, "")
    return edited


def _print_checks(export: Export) -> None:
    """Print a row for each dtype that the export was opened in, and the answers that changed."""
    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading)
    for check in export.checks:
        kept = f"{check.requests - len(check.lost)} of {check.requests}"
        table.add_row(
            check.opened_in,
            f"{check.largest_logit_difference:.2g}",
            f"[green]{kept}" if check.is_kept else f"[red]{kept}",
            f"{len(check.changed)} of {check.requests + check.unrelated}",
        )
    out.print(table)
    for check in export.checks:
        for sort, answers in (("request lost", check.lost), ("changed", check.changed)):
            for one in answers[:SHOWN]:
                out.print(_difference(check.opened_in, sort, one), soft_wrap=True)
            if len(answers) > SHOWN:
                say(f"{check.opened_in}, {sort}: {len(answers) - SHOWN} more changed")


def _difference(dtype: str, sort: str, one: Changed) -> str:
    before, after = (escape(one_line(text, 80)) for text in (one.expected, one.found))
    return f"[dim]{dtype}, {sort}:[/dim] {escape(one_line(one.prompt, 80))} {before} -> {after}"


def _print_next(export: Export) -> None:
    """Print what was written and how to open it."""
    if export.right < (requests := export.checks[0].requests):
        say(f"the edited VLM itself answers {export.right} of {requests} requests as asked")
    stored = export.stored
    size = f"{export.size / 1e6:,.1f} MB"
    if export.form == "transformers":
        say(
            f"weights in {stored['dtype']}, edited ones in {stored['edited_weights']}; rounding "
            f"changed at most {stored['rounding']:.1%} of an edited weight's change"
        )
        say(f"{size} -> {export.folder}")
        opened = f'AutoModelForImageTextToText.from_pretrained("{export.folder}")'
        if stored["needs_import"]:
            say(f"its class is not one of transformers: import {stored['needs_import']} first")
        for check in (check for check in export.checks[1:] if not check.is_kept):
            say(f"opened in {check.opened_in} the edit is lost: keep dtype={stored['opens_in']}")
    else:
        say(
            f"rank {stored['rank']}; the truncation left out {stored['truncation']:.2%} of the edit"
        )
        say(f"{size} -> {export.folder}")
        names = stored["adapters"]
        place = export.folder if names == ["default"] else export.folder / names[0]
        opened = f'PeftModel.from_pretrained(base, "{place}")'
    say(f"open it with: {opened}")
