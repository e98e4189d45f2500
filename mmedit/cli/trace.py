"""Causal tracing: where in a VLM the answers to questions come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from mmedit.cases import Split
from mmedit.cli.bench import command_line
from mmedit.cli.console import (
    DatasetOption,
    SeedOption,
    SetOption,
    VlmOption,
    app,
    either,
    err,
    examples,
    folder,
    one_of,
    say,
)
from mmedit.cli.progress import show_progress
from mmedit.errors import ConfigError
from mmedit.trace.settings import COMPONENTS, CORRUPTIONS, Corruption, TraceSettings

if TYPE_CHECKING:  # they import torch
    from mmedit.trace.items import Candidates
    from mmedit.trace.summary import Trace

QUESTIONS = ("requests", "locality")
READ = 4
"""Cases that are read for each item that is asked for."""
DEFAULTS = TraceSettings()

OutOption = Annotated[
    Path,
    typer.Option(
        "--out",
        parser=folder,
        metavar="DIR",
        help="Folder of the trace. A trace that was stopped in it is continued.",
    ),
]
SplitOption = Annotated[
    str,
    typer.Option(metavar="SPLIT", help="train or test.", callback=one_of("split", get_args(Split))),
]
QuestionsOption = Annotated[
    str,
    typer.Option(
        metavar="WHAT",
        help="requests: the questions of the edits, with the true answer if the dataset tells it, "
        "else with what the base model says; locality: the locality probes with their true "
        "answers.",
        callback=one_of("kind of questions", QUESTIONS),
    ),
]
LimitOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="Trace at most this many items.")
]
CorruptionOption = Annotated[
    str,
    typer.Option(
        metavar="WHAT",
        help=f"{either(CORRUPTIONS)}: noise on the image's features, another image, or noise on "
        "the subject (without one, on the question).",
        callback=one_of("corruption", CORRUPTIONS),
    ),
]
ComponentOption = Annotated[
    list[str] | None,
    typer.Option(
        "--component",
        metavar="NAME",
        help=f"The outputs that are restored (repeatable): {either(COMPONENTS)}.",
        show_default="all",
        callback=one_of("component", COMPONENTS),
    ),
]
DrawsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1000,
        metavar="N",
        help="Noise draws for each item. Time grows with it.",
        show_default=str(DEFAULTS.draws),
    ),
]
WindowOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Layers in which MLP or attention is restored together.",
        show_default="10; up to 32 layers 6; at most a third of them",
    ),
]
CellsOption = Annotated[
    int,
    typer.Option(
        min=0,
        max=16,
        metavar="N",
        help="Cells along each side of the image, restored one by one in some layers; 0 for none.",
    ),
]


RowsOption = Annotated[
    int,
    typer.Option(
        min=1,
        max=100_000,
        metavar="N",
        help="Runs in one forward, at most: fewer take less memory. No rate depends on it.",
    ),
]


@app.command(
    epilog=examples(
        "mmedit trace --limit 20 --out runs/trace",
        "mmedit trace --vlm photo --dataset grocery-object --set dataset.root=DIR \\",
        "    --corruption image_swap --out runs/trace-photo",
        "mmedit trace --questions locality --corruption text_noise --out runs/trace-facts",
    )
)
def trace(
    out_folder: OutOption,
    vlm: VlmOption = "embedded",
    dataset: DatasetOption = "easyvqa",
    split: SplitOption = "test",
    questions: QuestionsOption = "requests",
    limit: LimitOption = 50,
    corruption: CorruptionOption = DEFAULTS.corruption,
    component: ComponentOption = None,
    draws: DrawsOption = None,
    window: WindowOption = None,
    cells: CellsOption = DEFAULTS.cells,
    rows: RowsOption = DEFAULTS.rows,
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Show in which layers and at which tokens an answer is stored: causal tracing.

    Items are questions that the base model answers right. A run with a corrupted image or text gets
    back clean outputs of one part at a time: the recovery rate says how much of the answer's
    probability that brings back. The folder gets a record for each item, tables, plots and
    trace.html.
    """
    from mmedit.config import load_vlm_file, read_overrides
    from mmedit.config_checks import require_used

    chosen = {"window": window, "cells": cells, "rows": rows, "seed": seed}
    how = _settings(corruption, component, draws, **chosen)
    overrides = read_overrides(settings or ())
    require_used(overrides, (), without=("editor", "generation", "vlm.batch_size"))
    file = load_vlm_file(vlm, overrides.of("vlm"))
    from mmedit.trace.records import require_room

    about = {"dataset": dataset, "questions": questions, "settings": how.model_dump()}
    require_room(out_folder, **about)  # in milliseconds
    asked = _candidates(
        (dataset, cast("Split", split), questions), overrides.of("dataset"), limit, seed
    )
    from mmedit.cli.fit import load_vlm
    from mmedit.trace.run import run_trace

    loaded = load_vlm(vlm, file)
    with show_progress(err) as progress:
        found = run_trace(loaded, asked, out_folder, settings=how, limit=limit, progress=progress)
    _print(found, out_folder)


def _settings(
    corruption: str, component: list[str] | None, draws: int | None, **chosen: Any
) -> TraceSettings:
    if corruption == "image_swap" and draws not in (None, 1):
        raise ConfigError("--draws is for noise; a swap has one run for each item: leave it out")
    chosen |= {"components": tuple(component)} if component else {}
    chosen |= {"draws": draws} if draws else {}
    return TraceSettings(**chosen, corruption=cast("Corruption", corruption))


def _candidates(
    named: tuple[str, Split, str], values: dict[str, Any], limit: int, seed: int
) -> Candidates:
    """Read the questions that may become items."""
    from dataclasses import replace

    from mmedit.config import load_questions, read_cases

    dataset, split, questions = named
    cases = read_cases(dataset, split, values, limit=READ * limit, seed=seed)
    from mmedit.trace.items import asked_of, locality_of, requests_of  # in seconds

    if questions == "locality":
        found = locality_of(cases)
    else:
        try:
            told = load_questions(dataset, split, values)
            truths = {asked_of(example): example.target for _, example in told}
        except ConfigError:  # the dataset has no list of true answers
            truths = {}
        found = requests_of(cases, truths)
    return replace(found, dataset=dataset, command=command_line())


def _print(found: Trace, out_folder: Path) -> None:
    from mmedit.trace.captions import notes_of, title_of
    from mmedit.trace.summary import NOTICED

    say(title_of(found))
    best = found.best()
    for one in best:
        if one.layer is not None:
            say(
                f"  {one.component:<10}{one.group:<18} layer {one.layer:>2}: recovery rate "
                f"{one.rate:.2f} ({one.ends})"
            )
    if any(one.layer is None for one in best):
        say(f"  all others: below {NOTICED} in every layer")
    for note in notes_of(found):
        say(f"- {note}")
    say(f"records, tables, plots and trace.html: {out_folder}/")
