"""Fixing the similar questions of the probes of De-VQA in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mmedit.cli.console import DatasetOption, SetOption, err, examples, one_of, say
from mmedit.cli.data import data
from mmedit.cli.progress import show_progress

if TYPE_CHECKING:
    from mmedit.datasets.base import CaseSplit

SPLITS = ("train", "validation", "test")


@data.command(
    "neighbours",
    epilog=examples(
        "mmedit data neighbours --dataset evqa --set dataset.root=DIR --out DIR/neighbours.json",
        "mmedit bench --dataset evqa --set dataset.root=DIR --set dataset.probes=devqa \\",
        "    --set dataset.neighbours=DIR/neighbours.json --out runs/x",
    ),
)
def find_neighbours(
    out_file: Annotated[Path, typer.Option("--out", metavar="FILE", help="File for the result.")],
    dataset: DatasetOption = "easyvqa",
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="train, validation or test (repeatable); editors that learn need train too.",
            show_default="test",
            callback=one_of("split", SPLITS),
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the cases that are made from pictures.")
    ] = 0,
    settings: SetOption = None,
) -> None:
    """Fix which similar question of the training split each case is asked with.

    Without such a file the same ones are found each time the cases are read. A file of your own
    choice has the same form.
    """
    from mmedit.config import read_overrides
    from mmedit.config_checks import dataset_of, require_used
    from mmedit.datasets.neighbours import write_neighbours

    overrides = read_overrides(settings or ())
    require_used(overrides, (), without=("generation", "vlm"))
    chosen = dataset_of(dataset, overrides.of("dataset"))
    places = {}
    with show_progress(err) as progress:
        for name in cast("list[CaseSplit]", split or ["test"]):
            places |= chosen.find_neighbours(name, seed=seed, progress=progress)
    write_neighbours(places, out_file)
    say(f"The similar questions of {len(places):,} cases -> {out_file}")
