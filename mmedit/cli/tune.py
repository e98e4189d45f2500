"""The search of an editor's settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmedit.cli.bench import command_line
from mmedit.cli.bench_options import BatchSizeOption, ModeOption
from mmedit.cli.console import (
    DatasetOption,
    EditorOption,
    SeedOption,
    SetOption,
    VlmOption,
    app,
    err,
    examples,
    folder,
    out,
    say,
)
from mmedit.cli.progress import show_progress

if TYPE_CHECKING:  # they import torch
    from mmedit.tune.search import SearchPlan
    from mmedit.tune.table import SearchTable

GridOption = Annotated[
    list[str],
    typer.Option(
        "--grid",
        metavar="GRID",
        help="A setting with its values, for example lr=1e-4,1e-3 (repeatable), or a YAML file "
        "of such lists.",
    ),
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out",
        parser=folder,
        metavar="DIR",
        help="Folder of the search. A search that was stopped in it is continued.",
    ),
]
PointsOption = Annotated[
    int | None,
    typer.Option(
        "--points",
        min=1,
        metavar="N",
        help="Measure N points of the grid, drawn by the seed.",
        show_default="all",
    ),
]
LimitOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="Measure at most this many validation cases.")
]


@app.command(
    epilog=examples(
        "mmedit tune --editor ft --grid lr=1e-4,1e-3 --grid steps=10,20 --out tune/ft",
        "mmedit tune --editor mend --grid grid.yaml --points 8 --limit 50 --out tune/mend",
        "mmedit bench --editor tune/ft/best.yaml --out runs/ft",
    )
)
def tune(
    grid: GridOption,
    out_folder: OutOption,
    vlm: VlmOption = "embedded",
    editor: EditorOption = "ft",
    dataset: DatasetOption = "easyvqa",
    mode: ModeOption = None,
    points: PointsOption = None,
    limit: LimitOption = 100,
    batch_size: BatchSizeOption = None,
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Choose an editor's settings: run every point of a grid, and print the table of all.

    The best point has the highest mean, over the probes, of exact match. It is chosen on validation
    cases: not on test cases, nor on cases that the editor was trained on. The folder gets a run for
    each point, table.md, table.csv, and best.yaml for --editor.
    """
    from mmedit.config import read_overrides
    from mmedit.config_checks import require_used
    from mmedit.config_files import Block
    from mmedit.tune.grid import points_of, read_grid

    values = read_grid(grid)
    points_of(values, editor)
    overrides = read_overrides(settings or ())
    kind = mode or "independent"
    require_used(overrides, [editor], [kind], without=("generation",))
    from mmedit.suite import RunOptions  # in seconds; what is above takes milliseconds
    from mmedit.tune.search import prepare_search

    options = RunOptions(
        batch_size=batch_size,
        generate=False,
        overrides=overrides,
        seed=seed,
        command=command_line(),
    )
    block = Block(vlm=vlm, editors=(editor,), dataset=dataset, mode=kind, limit=limit)
    plan = prepare_search(block, values, out_folder, points=points, options=options)
    print_table(measure(plan))


def measure(plan: SearchPlan) -> SearchTable:
    """Run the points of a search with progress bars, and write its table."""
    from mmedit.cli.fit import silence_transformers
    from mmedit.processes import on_main
    from mmedit.tune.search import measure_points
    from mmedit.tune.table import write_table

    silence_transformers()
    number = {one.name: place for place, one in enumerate(plan.plans, start=1)}
    with show_progress(err) as progress:
        for one in measure_points(plan, progress=progress):
            say(f"point {number[one.name]} of {len(number)}: {one.title}", to=err)
    return on_main(lambda: write_table(plan.folder))


def print_table(table: SearchTable) -> None:
    """Print the table of a search, and what can be done with it."""
    from mmedit.report.render.points import points_view
    from mmedit.tune.table import BEST, notes_of

    out.print(points_view(table.points))
    for note in notes_of(table):
        say(f"- {note}")
    search = table.search
    say(f"runs, table.md and table.csv: {table.folder}/")
    if table.best is not None:
        kept = ("vlm.", "dataset.", f"{search.mode}.")
        more = "".join(f" --set {text}" for text in search.settings if text.startswith(kept))
        mode = "" if search.mode == "independent" else f" --mode {search.mode}"
        say(
            f"next: mmedit bench --vlm {search.vlm} --editor {table.folder / BEST} --dataset "
            f"{search.dataset}{mode}{more} --out runs/x"
        )
