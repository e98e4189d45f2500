"""Three plots of the methods of a table, as SVG and PNG: reliability against locality, every probe,
and both metrics by the length of the answer.

The colours are those of Okabe and Ito ("Color universal design", 2008), which colour-blind readers
can distinguish; each method has its own marker too. The same records give the same SVG, byte for
byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isnan
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmedit.cases import Probe
from mmedit.errors import RunError
from mmedit.records.schema import Record
from mmedit.report.columns import EXACT_MATCH, TOKEN_ACCURACY, Measure
from mmedit.report.intervals import Summary
from mmedit.report.scores import by_editor, edit_scores, is_base
from mmedit.report.table import method_table
from mmedit.storage import make_folder, replaced

MAX_LENGTHS = 8
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
_MARKERS = "osD^vPX*"
_GREYS = ("#8a8a8a", "#c4c4c4", "#5a5a5a")
"""Colours of base models, in turn."""
STYLE: Mapping[Any, object] = MappingProxyType(
    {
        "svg.hashsalt": "mmedit",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e3e3e3",
        "legend.frameon": False,
        "savefig.dpi": 160,
        "text.parse_math": False,  # a run may be named a$b$
    }
)


@dataclass(frozen=True)
class Look:
    """The appearance of one row of the table in every plot."""

    colour: str
    marker: str
    size: float
    hatch: str = ""


def write_plots(records: Sequence[Record], folder: Path, *, title: str = "") -> list[Path]:
    """Write tradeoff, splits and lengths, each as .svg and .png, and return their paths.

    `title` says what was measured; the number of edits is added to it. A plot is left out if no
    record has its probes. Raises DataError for records without a score, and RunError.
    """
    table, rows = method_table(records), by_editor(records)
    make_folder(folder)
    looks = looks_of(list(rows))
    heading = title_with_n(title, rows)
    written: list[Path] = []
    with matplotlib.rc_context(dict(STYLE)):
        for name, figure in (
            ("tradeoff", _tradeoff(table, looks)),
            ("splits", _splits(table, looks)),
            ("lengths", _lengths(rows, looks)),
        ):
            if figure is not None:
                put_title(figure, heading)
                written += saved(figure, folder / name)
    return written


def title_with_n(title: str, rows: Mapping[str, Sequence[Record]]) -> str:
    """Return the title of a figure: what was measured, and the number of edits of the rows."""
    counts = sorted({len(found) for found in rows.values()})
    n = f"n = {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")
    return f"{title}, {n}" if title else n


def put_title(figure: Figure, title: str) -> None:
    """Put a title above the legend of a figure."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.25)
    figure.legends[0].set_title(title)


def saved(figure: Figure, path: Path) -> list[Path]:
    """Save a figure as an SVG and a PNG beside each other. Raises RunError."""
    svg, png = path.with_suffix(".svg"), path.with_suffix(".png")
    lay_out(figure)
    try:
        with replaced(svg) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None}, bbox_inches="tight")
        with replaced(png) as partial:
            figure.savefig(partial, format="png", metadata={"Software": None}, bbox_inches="tight")
    except OSError as error:
        raise RunError(f"cannot write {svg}: {error.strerror}; choose another --out") from error
    return [svg, png]


def lay_out(figure: Figure) -> None:
    """Compute the places of all parts of a figure, and keep them: to save it draws it twice in each
    format, and would compute them every time, which takes as long as drawing.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def looks_of(editors: Sequence[str]) -> dict[str, Look]:
    """Choose colour and marker of each row, the base models in greys. Markers shrink from method to
    method: points that lie on each other all stay visible.
    """
    methods = [editor for editor in editors if not is_base(editor)]
    bases = [editor for editor in editors if is_base(editor)]
    looks = {
        base: Look(_GREYS[place % len(_GREYS)], "x+1"[place % 3], 9, "..." * (place >= len(_GREYS)))
        for place, base in enumerate(bases)
    }
    for place, editor in enumerate(methods):
        colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
        hatch = "///" if place >= len(_COLOURS) else ""
        looks[editor] = Look(colour, marker, 15 - 8 * place / max(1, len(methods) - 1), hatch)
    return {editor: looks[editor] for editor in editors}


def _tradeoff(table: pandas.DataFrame, looks: Mapping[str, Look]) -> Figure | None:
    """Draw exact match of the request against exact match of each locality probe."""
    local = [
        probe for probe in Probe if probe.is_locality and (probe.heading, "EM") in table.columns
    ]
    if not local or ("Rel", "EM") not in table.columns:
        return None
    figure = Figure(figsize=(4.2 * len(local), 4.2), layout="constrained")
    for axes, probe in zip(figure.subplots(1, len(local), squeeze=False)[0], local, strict=True):
        for editor, look in looks.items():
            row = table.loc[editor]
            _point(axes, look, row["Rel", "EM"], row[probe.heading, "EM"])
        axes.set(xlim=(-4, 104), ylim=(-4, 104), aspect="equal")
        axes.set_xlabel("reliability, exact match (%)")
        axes.set_ylabel(f"{probe.title.lower()}, exact match (%)")
    legend(figure, looks)
    return figure


def _point(axes: Axes, look: Look, x: object, y: object) -> None:
    if not (isinstance(x, Summary) and isinstance(y, Summary) and x.n and y.n):
        return
    axes.errorbar(
        x.mean, y.mean, xerr=sides([x]), yerr=sides([y]), fmt=look.marker, color=look.colour,
        markersize=look.size, markerfacecolor="none", markeredgewidth=1.8, elinewidth=1.2,
        clip_on=False,
    )  # fmt: skip


def _splits(table: pandas.DataFrame, looks: Mapping[str, Look]) -> Figure:
    """Draw bars of every probe: token accuracy above, exact match below."""
    probes = [probe for probe in Probe if (probe.heading, "EM") in table.columns]
    width = 0.84 / len(looks)
    inches = max(6.0, 0.22 * len(looks) * len(probes) + 1.5)
    figure = Figure(figsize=(min(inches, 16), 5.6), layout="constrained")
    for axes, (name, title) in zip(
        figure.subplots(2, 1, sharex=True),
        (("tok", "token accuracy (%)"), ("EM", "exact match (%)")),
        strict=True,
    ):
        for place, (editor, look) in enumerate(looks.items()):
            cells = [table.loc[editor, (probe.heading, name)] for probe in probes]
            known = [
                (x, cell) for x, cell in enumerate(cells) if isinstance(cell, Summary) and cell.n
            ]
            shift = (place - (len(looks) - 1) / 2) * width
            axes.bar(
                [x + shift for x, _ in known], [cell.mean for _, cell in known], 0.9 * width,
                color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0,
                yerr=sides([cell for _, cell in known]),
                error_kw={"elinewidth": 1, "ecolor": "#333333", "capsize": 1.5},
            )  # fmt: skip
        axes.set(ylabel=title, ylim=(0, 104), xticks=range(len(probes)))
        axes.set_xticklabels([probe.title.lower().replace(" ", "\n") for probe in probes])
        axes.grid(visible=False, axis="x")
    legend(figure, looks, bars=True)
    return figure


def _lengths(rows: Mapping[str, Sequence[Record]], looks: Mapping[str, Look]) -> Figure | None:
    """Draw both metrics of the request by the length of its answer, one panel per method."""
    asked = {
        editor: [record for record in found if record.probes.get(Probe.RELIABILITY)]
        for editor, found in rows.items()
    }
    rows = {editor: found for editor, found in asked.items() if found}
    if not rows:
        return None
    across = min(3, len(rows))
    down = ceil(len(rows) / across)
    bins = _length_bins([length for records in rows.values() for length in map(_length, records)])
    figure = Figure(figsize=(3.3 * across, 2.7 * down + 0.4), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, (editor, records) in zip(panels, rows.items(), strict=False):
        for measure, line in ((TOKEN_ACCURACY, "--"), (EXACT_MATCH, "-")):
            _line(axes, looks[editor], line, [_in_bin(records, b, measure) for b in bins])
        axes.set_title(_wrapped(editor), fontsize=10)
        axes.set(ylim=(-4, 104), xlim=(-0.5, len(bins) - 0.5), xticks=range(len(bins)))
        axes.set_xticklabels([_bin_name(*b) for b in bins])
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(rows) - across) : len(rows)]:  # nothing below them
        axes.tick_params(labelbottom=True)
    figure.supxlabel("tokens of the answer", fontsize=10)
    figure.supylabel("reliability (%)", fontsize=10)
    lines = [
        Line2D([], [], color="#333333", linestyle="--", marker="o", markerfacecolor="white"),
        Line2D([], [], color="#333333", linestyle="-", marker="o"),
    ]
    figure.legend(lines, ["token accuracy", "exact match"], loc="outside upper center", ncols=2)
    return figure


def _line(axes: Axes, look: Look, line: str, cells: Sequence[Summary | None]) -> None:
    known = [(x, cell) for x, cell in enumerate(cells) if cell and cell.n]
    if not known:  # an empty line has no extent, which the layout cannot use
        return
    shift = -0.06 if line == "--" else 0.06
    axes.errorbar(
        [x + shift for x, _ in known], [cell.mean for _, cell in known],
        yerr=sides([cell for _, cell in known]), color=look.colour, linestyle=line, marker="o",
        markersize=5, markerfacecolor="white" if line == "--" else look.colour, elinewidth=1,
        clip_on=False,
    )  # fmt: skip


def _length(record: Record) -> int:
    return record.probes[Probe.RELIABILITY][0].post.n_tokens


def _length_bins(lengths: Iterable[int]) -> list[tuple[int, int]]:
    """Return (shortest, longest) of every bin: single lengths if there are few, else ranges with
    about equally many answers.
    """
    found = sorted(lengths)
    distinct = sorted(set(found))
    if len(distinct) <= MAX_LENGTHS:
        return [(length, length) for length in distinct]
    inner = np.quantile(found, np.linspace(0, 1, MAX_LENGTHS + 1)[1:-1], method="lower")
    ends = sorted({*inner.astype(int).tolist(), distinct[-1]})
    starts = [distinct[0], *(end + 1 for end in ends[:-1])]
    return list(zip(starts, ends, strict=True))


def _bin_name(shortest: int, longest: int) -> str:
    return str(shortest) if shortest == longest else f"{shortest}–{longest}"


def _in_bin(records: Sequence[Record], limits: tuple[int, int], measure: Measure) -> Summary | None:
    asked = [record for record in records if limits[0] <= _length(record) <= limits[1]]
    scores = edit_scores(asked, Probe.RELIABILITY, measure) if asked else None
    return scores and scores.summary()


def sides(cells: Sequence[Summary]) -> list[list[float]]:
    """Return the lengths of error bars, down and up."""
    down = [0.0 if isnan(cell.low) else cell.mean - cell.low for cell in cells]
    up = [0.0 if isnan(cell.high) else cell.high - cell.mean for cell in cells]
    return [[max(0.0, side) for side in sides] for sides in (down, up)]


def _wrapped(editor: str) -> str:
    """Put the run of "LABEL (RUN)" below the label."""
    return editor.replace(" (", "\n(", 1)


def legend(figure: Figure, looks: Mapping[str, Look], *, bars: bool = False) -> None:
    """Put the legend above the panels, in as many lines as the labels need."""
    handles = [
        Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0)
        if bars
        else Line2D([], [], color=look.colour, linestyle="none", marker=look.marker, markersize=9,
                    markerfacecolor="none", markeredgewidth=1.8)
        for look in looks.values()
    ]  # fmt: skip
    width, height = figure.get_size_inches()
    columns = max(1, min(len(looks), int(8 * width) // (max(map(len, looks)) + 5)))
    figure.set_size_inches(width, height + 0.2 * (len(looks) // columns))
    figure.legend(handles, list(looks), loc="outside upper center", ncols=columns)
