"""Asking a base model which questions of a dataset it answers right."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from mmedit.cases import Split
from mmedit.cli.console import DatasetOption, SetOption, VlmOption, err, examples, one_of, say
from mmedit.cli.data import data
from mmedit.cli.progress import show_progress


@data.command(
    "known",
    epilog=examples(
        "mmedit data known --vlm photo --set dataset.root=DIR --out known.json",
        "mmedit bench --vlm photo --dataset grocery-object --set dataset.root=DIR \\",
        "    --set dataset.known=known.json --out runs/x",
    ),
)
def known_questions(
    out_file: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE",
            help="File for the result. What it holds already is not asked again.",
        ),
    ],
    vlm: VlmOption = "embedded",
    dataset: DatasetOption = "grocery",
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="train or test (repeatable); editors that learn need train too.",
            show_default="test",
            callback=one_of("split", get_args(Split)),
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Ask at most this many questions.", show_default="all"
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="Questions per pass.")
    ] = 32,
    settings: SetOption = None,
) -> None:
    """Ask a base model which questions of a dataset it answers right.

    The setting dataset.known=FILE then makes edits and probes of these questions alone. The same
    command continues one that was stopped.
    """
    from mmedit.cli.fit import load_vlm
    from mmedit.config import load_questions, load_vlm_file, read_overrides
    from mmedit.config_checks import require_used

    overrides = read_overrides(settings or ())
    require_used(overrides, (), without=("generation", "vlm.batch_size"))
    values = overrides.of("dataset")
    splits = cast("list[Split]", split or ["test"])
    asked = [list(load_questions(dataset, name, values)) for name in splits]
    loaded = load_vlm(vlm, load_vlm_file(vlm, overrides.of("vlm")))
    from mmedit.bench.known import find_known

    with show_progress(err) as progress:
        found = find_known(
            loaded,
            islice(chain.from_iterable(asked), limit),
            out_file,
            dataset=dataset,
            batch_size=batch_size,
            progress=progress,
        )
    right = sum(found.right.values())
    say(f"{vlm} answers {right:,} of {len(found.right):,} questions right -> {out_file}")
