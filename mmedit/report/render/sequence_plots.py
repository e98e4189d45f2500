"""Plots of edits made one after another: every probe and the VLM's other abilities by number of
edits, and how soon an edit is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import isnan
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmedit.cases import Probe
from mmedit.records.schema import Record
from mmedit.report.columns import COLUMN_SETS, Measure
from mmedit.report.intervals import Summary
from mmedit.report.render.plots import (
    STYLE,
    Look,
    lay_out,
    legend,
    looks_of,
    put_title,
    saved,
    sides,
    title_with_n,
)
from mmedit.report.scores import all_by_editor, is_base
from mmedit.report.sequences import COLLAPSED, Ability, abilities, curve, forgetting, is_sequence
from mmedit.storage import make_folder

ACROSS = 3
"""Number of panels beside each other."""
Points = Sequence[tuple[int, Summary]]


def write_sequence_plots(records: Sequence[Record], folder: Path, *, title: str = "") -> list[Path]:
    """Write sequence and, if edits were tested again after gaps, forgetting, each as .svg and .png,
    and return their paths; none if the records are not of sequences.

    `title` says what was measured; the number of edits is added to it. Raises RunError.
    """
    figures = sequence_figures(records, title=title)
    if figures:
        make_folder(folder)
    with matplotlib.rc_context(dict(STYLE)):
        return [path for name, figure in figures.items() for path in saved(figure, folder / name)]


def sequence_figures(records: Sequence[Record], *, title: str = "") -> dict[str, Figure]:
    """Draw the plots of the sequences among the records, by name; empty if there is none."""
    rows = {
        editor: found
        for editor, found in all_by_editor(records).items()
        if is_sequence(found) and not is_base(editor)
    }
    if not rows:
        return {}
    looks = looks_of(list(rows))
    edited = {
        editor: [record for record in found if record.test == "edit"]
        for editor, found in rows.items()
    }
    heading = title_with_n(title, edited)
    with matplotlib.rc_context(dict(STYLE)):
        drawn = {"sequence": _sequence(rows, looks), "forgetting": _forgetting(rows, looks)}
        figures = {name: figure for name, figure in drawn.items() if figure is not None}
        for figure in figures.values():
            put_title(figure, heading)
    return figures


def svg_of(figure: Figure) -> bytes:
    """Return a figure as an SVG file, to be put into a page."""
    svg = BytesIO()
    with matplotlib.rc_context(dict(STYLE)):
        lay_out(figure)
        figure.savefig(svg, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return svg.getvalue()


def _exact(probe: Probe) -> Measure:
    return next(m for m in COLUMN_SETS["default"].of(probe) if m.name == "EM")


def _sequence(rows: Mapping[str, Sequence[Record]], looks: Mapping[str, Look]) -> Figure:
    """Draw exact match of every probe, of all edits so far, and ability."""
    asked = {probe for found in rows.values() for record in found for probe in record.probes}
    probes = [probe for probe in Probe if probe in asked]
    known = {editor: abilities(found) for editor, found in rows.items()}
    number = len(probes) + any(known.values())
    figure, panels = _panels(number)
    for axes, probe in zip(panels, probes, strict=False):
        _panel(axes, probe.title.lower())
        for editor, found in rows.items():
            _line(axes, looks[editor], curve(found, probe, _exact(probe)))
    if any(known.values()):
        _ability(panels[len(probes)], known, looks)
    figure.supxlabel("edits made one after another", fontsize=10)
    figure.supylabel("exact match of all of them (%)", fontsize=10)
    legend(figure, looks)
    return figure


def _panels(number: int) -> tuple[Figure, Sequence[Axes]]:
    """Make a figure with so many panels, of which those without one below have tick labels."""
    down = -(-number // ACROSS)
    figure = Figure(figsize=(3.4 * ACROSS, 2.7 * down + 0.4), layout="constrained")
    panels = figure.subplots(down, ACROSS, sharex=True, sharey=True, squeeze=False).flatten()
    for axes in panels[number:]:
        axes.set_visible(False)
    for axes in panels[max(0, number - ACROSS) : number]:
        axes.tick_params(labelbottom=True)
    return figure, panels[:number].tolist()


def _ability(
    axes: Axes, known: Mapping[str, Mapping[int, Ability]], looks: Mapping[str, Look]
) -> None:
    """Draw what is left of the base model's abilities, and where a VLM has collapsed."""
    _panel(axes, "ability beside them (tokens)")
    for editor, orders in known.items():
        _ability_line(axes, looks[editor], [one.after for one in orders.values()])
    whole = fmean(one.unedited for orders in known.values() for one in orders.values())
    axes.axhline(100 * COLLAPSED * whole, color="#888888", linewidth=1, linestyle=":")


def _forgetting(rows: Mapping[str, Sequence[Record]], looks: Mapping[str, Look]) -> Figure | None:
    """Draw exact match of an edit by the number of edits that were made after it."""
    probe = Probe.RELIABILITY
    curves = {editor: forgetting(found, probe, _exact(probe)) for editor, found in rows.items()}
    if not any(curves.values()):
        return None
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    gaps = sorted({gap for points in curves.values() for gap, _ in points})
    for editor, points in curves.items():
        places = [(gaps.index(gap), cell) for gap, cell in points]
        _line(axes, looks[editor], places)
    axes.set(ylim=(-4, 104), xticks=range(len(gaps)), ylabel="reliability, exact match (%)")
    axes.set_xticklabels(map(str, gaps))
    axes.set_xlabel("further edits before it is tested again")
    legend(figure, looks)
    return figure


def _panel(axes: Axes, title: str) -> None:
    axes.set_xscale("log")
    axes.set(ylim=(-4, 104))
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _line(axes: Axes, look: Look, points: Points) -> None:
    """Draw a score by number of edits, with a gap where all outputs were NaN or infinite."""
    if not any(cell.n for _, cell in points):
        return
    axes.errorbar(
        [x for x, _ in points], [cell.mean for _, cell in points],
        yerr=sides([cell for _, cell in points]), color=look.colour, marker=look.marker,
        markersize=min(look.size, 8), markerfacecolor="none", elinewidth=1, clip_on=False,
    )  # fmt: skip


def _ability_line(axes: Axes, look: Look, orders: Sequence[Mapping[int, float]]) -> None:
    """Draw the mean over the orders, with a gap where all outputs of an order were NaN."""
    edits = sorted({stop for after in orders for stop in after})
    left = [100 * fmean(after[stop] for after in orders if stop in after) for stop in edits]
    if all(map(isnan, left)):
        return
    axes.plot(edits, left, color=look.colour, marker=".", markersize=3, clip_on=False)
