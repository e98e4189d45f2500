"""Tables, comparisons, plots and report pages, made from records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmedit.catalog import FORMATS, names
from mmedit.cli.console import (
    ColumnsOption,
    RunsArgument,
    app,
    either,
    err,
    examples,
    folder,
    known,
    one_of,
    out,
    say,
)
from mmedit.errors import ConfigError

FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help=f"{either(FORMATS)}.",
        show_default="as wide as the terminal; md in a file or a pipe",
        callback=one_of("table format", FORMATS),
    ),
]
PublishedOption = Annotated[
    str | None,
    typer.Option(
        "--published",
        metavar="NAME",
        help=f"Published values to put beside the measured ones: {either(names('published'))}.",
        show_default="none",
        callback=known("published"),
    ),
]
EditsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="For edits made in sequence: show the checkpoint after this many edits.",
        show_default="the last one",
    ),
]


@app.command(
    epilog=examples(
        "mmedit table runs/ft runs/mend",
        "mmedit table runs/ft --format latex > table.tex",
        "mmedit table runs/ft --columns locality",
        "mmedit table runs/blip2 --published mmedit",
    )
)
def table(
    runs: RunsArgument,
    format: FormatOption = None,
    columns: ColumnsOption = "default",
    published: PublishedOption = None,
    published_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The paper's model.", show_default="the run's --vlm"),
    ] = None,
    published_dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The paper's dataset.", show_default="the run's --dataset"
        ),
    ] = None,
    edits: EditsOption = None,
) -> None:
    """Make a table from the records of runs. Each run and editor is a row.

    Runs of different modes, VLMs, datasets or cases are not compared: each set has a table.
    """
    from mmedit.report.papers import load_published
    from mmedit.report.render import render_all
    from mmedit.report.render.terminal import tables_view
    from mmedit.report.run_tables import run_tables
    from mmedit.report.runs import read_runs

    _require_names(published, published_model, published_dataset)
    tables = run_tables(
        read_runs(runs, edits=edits),
        columns=columns,
        published=load_published(published) if published else None,
        model=published_model,
        dataset=published_dataset,
    )
    if format is None and out.is_terminal:
        out.print(tables_view(tables, width=out.width))
    else:
        print(render_all(tables, format or "md"), end="")


@app.command(
    "compare",
    epilog=examples(
        "mmedit compare runs/ft runs/mend",
        "mmedit compare runs/all:MEND runs/all:FT-M --show 20",
    ),
)
def compare_runs(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="A run folder, or RUN:EDITOR.")],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="Another, or RUN:EDITOR.")],
    show: Annotated[
        int, typer.Option(min=0, metavar="N", help="Show the texts of at most this many edits.")
    ] = 5,
    columns: ColumnsOption = "default",
    across_modes: Annotated[
        bool,
        typer.Option(
            "--across-modes", help="Compare also if the edits were made in different modes."
        ),
    ] = False,
) -> None:
    """Compare two methods edit by edit.

    Prints paired differences with their significance, and edits where the methods disagree.
    """
    from mmedit.report.comparison import compare
    from mmedit.report.methods import matched_methods
    from mmedit.report.render.terminal import comparison_view

    if not (first.strip() and second.strip()):
        raise ConfigError("the name of a run is empty; name two run folders, or RUN:EDITOR")
    for ours, theirs in matched_methods(first, second, across_modes=across_modes):
        out.print(comparison_view(compare(ours, theirs, columns=columns), show=show))


@app.command(epilog=examples("mmedit plot runs/ft runs/mend --out plots"))
def plot(
    runs: RunsArgument,
    out_folder: Annotated[
        Path,
        typer.Option("--out", parser=folder, metavar="DIR", help="Folder for SVG and PNG files."),
    ],
) -> None:
    """Draw the scores of runs as SVG and PNG.

    The plots show the trade-off between success and locality, every probe, and both metrics by
    answer length. For edits made in sequence they also show every probe by the number of edits.
    Runs of different modes, VLMs, datasets or cases have figures of their own, in a folder each.
    """
    from mmedit.report.render.plots import write_plots
    from mmedit.report.render.sequence_plots import write_sequence_plots
    from mmedit.report.runs import read_runs

    read = read_runs(runs)
    for number, one in enumerate(read, start=1):
        place = out_folder if len(read) == 1 else out_folder / str(number)
        if len(read) > 1:
            say(f"{number}: {one.title}")
        for write in (write_plots, write_sequence_plots):
            for path in write(one.records, place, title=one.title):
                say(f"written: {path}")


@app.command(epilog=examples("mmedit report runs/x", "mmedit report runs/x --examples 500"))
def report(
    run: Annotated[Path, typer.Argument(parser=folder, metavar="RUN", help="A run folder.")],
    number: Annotated[
        int,
        typer.Option("--examples", min=0, metavar="N", help="Show the first N edits with answers."),
    ] = 40,
) -> None:
    """Write report.html of a finished run, from its records.

    The page shows images where the run's dataset can be found. It filters the edits by method and
    outcome. No model is loaded.
    """
    from mmedit.pages import report_run

    path, reason = report_run(run, examples=number)
    if reason:
        say(f"the report has no images, because the dataset cannot be read: {reason}", to=err)
    say(f"written: {path}")


def _require_names(published: str | None, model: str | None, dataset: str | None) -> None:
    """Raise ConfigError if --published-model or --published-dataset cannot be used."""
    for option, value in (("--published-model", model), ("--published-dataset", dataset)):
        if value is not None and published is None:
            raise ConfigError(
                f"{option} {value} names a row of a published table, and no table is given; add "
                f"--published NAME: {either(names('published'))}"
            )
        if value is not None and not value.strip():
            raise ConfigError(f"{option} is empty; give a name, or leave {option} out")
