"""Tables, comparisons and plots, from records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmedit.cli.console import RunsArgument, app, err, out
from mmedit.errors import UnknownNameError


@app.command()
def table(
    runs: RunsArgument,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", help="md, latex, csv, html or json; in a terminal, blocks that fit it."
        ),
    ] = None,
    columns: Annotated[
        str, typer.Option("--columns", help="default (tok and EM), generation or locality")
    ] = "default",
    published: Annotated[
        str | None,
        typer.Option("--published", help="Values to put beside: mmedit, liveedit or unike."),
    ] = None,
    published_model: Annotated[
        str | None, typer.Option(help="The paper's model; by default, the one named as --vlm.")
    ] = None,
    published_dataset: Annotated[
        str | None, typer.Option(help="The paper's dataset; by default, named as --dataset.")
    ] = None,
    edits: Annotated[
        int | None, typer.Option(min=1, help="Of a sequence: its checkpoint after so many edits.")
    ] = None,
) -> None:
    """Make the paper's table from the records of one or more runs: a row per run and editor."""
    from mmedit.report.published import compare_with_published, load_published
    from mmedit.report.render import FORMATS, render
    from mmedit.report.render.terminal import table_view
    from mmedit.report.runs import read_runs
    from mmedit.report.sequences import sequence_notes
    from mmedit.report.table import method_table

    if format is not None and format not in FORMATS:
        raise UnknownNameError("table format", format, FORMATS)
    paper = load_published(published) if published else None
    runs_read = read_runs(runs, edits=edits)
    datasets = sorted({origin.dataset for origin in runs_read.origins.values()})
    if len(datasets) > 1:
        err.print(
            f"the rows are of different datasets ({', '.join(datasets)}), and the best of a column "
            "is the best of all rows; rather make a table of each"
        )
    frame = method_table(
        runs_read.records,
        columns=columns,
        training_seconds=runs_read.training_seconds or None,
        notes=[*runs_read.notes, *sequence_notes(runs_read.records)],
    )
    beside = paper and compare_with_published(
        frame, paper, runs_read.origins, model=published_model, dataset=published_dataset
    )
    if format is None and out.is_terminal:
        out.print(table_view(frame, beside, width=out.width))
    else:
        print(render(frame, format or "md", beside), end="")


@app.command("compare")
def compare_runs(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="A run folder, or RUN:EDITOR.")],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="Another, or RUN:EDITOR.")],
    show: Annotated[int, typer.Option(min=0, help="At most so many edits in words.")] = 5,
    columns: Annotated[
        str, typer.Option("--columns", help="default (tok and EM), generation or locality")
    ] = "default",
) -> None:
    """Compare two methods edit by edit: paired differences, and the edits where they disagree."""
    from mmedit.report.comparison import compare
    from mmedit.report.render.terminal import comparison_view
    from mmedit.report.runs import matched_methods

    for ours, theirs in matched_methods(first, second):
        out.print(comparison_view(compare(ours, theirs, columns=columns), show=show))


@app.command()
def plot(
    runs: RunsArgument,
    out_folder: Annotated[Path, typer.Option("--out", help="Where the SVG and PNG files go.")],
) -> None:
    """Draw the trade-off, every split, and both metrics by answer length, as SVG and PNG; of edits
    made one after another also every split by their number.
    """
    from mmedit.report.render.plots import write_plots
    from mmedit.report.render.sequence_plots import write_sequence_plots
    from mmedit.report.runs import read_runs

    records = read_runs(runs).records
    paths = [*write_plots(records, out_folder), *write_sequence_plots(records, out_folder)]
    for path in paths:
        out.print(f"written: {path}", soft_wrap=True)
