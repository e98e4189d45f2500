"""One HTML page about a run: the table, its trade-off, plots of sequences, and edits to look at.

The page loads nothing from outside (images are embedded), and every string of the records is
escaped: prompts and generated answers are data, never markup. Its one script filters the edits; the
page's policy allows that script alone, by its hash. Without it, all edits are shown.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan
from pathlib import Path
from types import MappingProxyType

import pandas
from markupsafe import Markup
from matplotlib.figure import Figure

from mmedit.cases import OWN_ANSWER, Probe
from mmedit.records.schema import Record, RunManifest
from mmedit.report.columns import Column
from mmedit.report.intervals import Summary
from mmedit.report.render.gallery import choices, gallery
from mmedit.report.render.html import TEMPLATES, html_parts
from mmedit.report.render.sequence_plots import sequence_figures, svg_of
from mmedit.report.render.thumbnails import Images, data_uri, thumbnails
from mmedit.report.run_tables import run_table
from mmedit.report.runs import INDEPENDENT, Measured, measured_run, mode_of
from mmedit.report.scores import is_base
from mmedit.storage import write_atomically

REPORT = "report.html"
EXAMPLES = 40
"""Number of edits shown with pictures and answers."""
PIXELS_PER_POINT = 96 / 72
SCRIPT = (Path(__file__).parent / "report.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Bar:
    """One dot of the plot with its interval, all in percent of the axis."""

    lane: int
    probe: str
    mean: float
    low: float
    width: float


def write_report(
    folder: Path,
    records: Sequence[Record],
    *,
    manifest: RunManifest | None = None,
    images: Images = MappingProxyType({}),
    title: str = "",
    examples: int = EXAMPLES,
) -> Path:
    """Write `report.html` into the folder of a run and return its path.

    `manifest` adds command, versions, notes and training times. `images` gives the file of an image
    by its name in the records; an image without a file has no thumbnail. `title` replaces the
    heading, which otherwise names the VLM and the dataset. `examples` is the number of edits shown.
    Raises DataError for records that make no table, ImageError for a file that is not an image,
    RunError if the page cannot be written.
    """
    shown = _shown(records, manifest)
    table = run_table(shown)
    lanes = _lanes(table)
    plot = [(editor, _bars(table.loc[editor].to_dict(), lanes)) for editor in table.index]
    title = title or (f"{manifest.vlm} on {manifest.dataset}" if manifest else folder.name)
    cases = gallery(shown.records, examples, thumbnails(images))
    page = TEMPLATES.get_template("report.html.j2").render(
        title=title or "Edits",
        intro=_intro(table, shown.records, manifest),
        manifest=manifest,
        **html_parts(table),
        plot=plot,
        legend=sorted({(bar.lane, bar.probe) for _, bars in plot for bar in bars}),
        figures=[_embedded(*one) for one in sequence_figures(records, title=title).items()],
        gallery=cases,
        choices=choices(cases),
        edits=_number_of_edits(shown.records),
        script=Markup(SCRIPT),
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    )
    write_atomically(folder / REPORT, page.encode())
    return folder / REPORT


@dataclass(frozen=True)
class Embedded:
    """A figure as a data URI, with its size in pixels."""

    name: str
    uri: str
    width: int
    height: int


def _embedded(name: str, figure: Figure) -> Embedded:
    svg = svg_of(figure)
    points = re.findall(rb'(?:width|height)="([\d.]+)pt"', svg)[:2]
    width, height = (round(float(number) * PIXELS_PER_POINT) for number in points)
    return Embedded(name, data_uri(svg, "svg+xml"), width, height)


def _shown(records: Sequence[Record], manifest: RunManifest | None) -> Measured:
    """Return the records that the table shows, with their notes."""
    return measured_run(records, manifest) if manifest else Measured(list(records), {}, {})


def _intro(table: pandas.DataFrame, records: Sequence[Record], manifest: RunManifest | None) -> str:
    methods = [str(editor) for editor in table.index if not is_base(str(editor))]
    edits = _number_of_edits(records)
    alone = manifest is not None and mode_of(manifest) == INDEPENDENT
    how = ", each made by itself from the base model" if alone else ""
    return f"{edits:,} edits{how}. Methods: {', '.join(methods) or 'none'}."


def _number_of_edits(records: Sequence[Record]) -> int:
    return len({record.case_id for record in records if record.test != "ability"})


def _lanes(table: pandas.DataFrame) -> list[Probe]:
    """Choose the probes of the plot: one that the edit must change, one that it must not."""
    known = [probe for probe in Probe if (probe.heading, "EM") in table.columns]
    changed = [probe for probe in known if not probe.is_locality]
    kept = [probe for probe in reversed(known) if probe.is_locality and probe not in OWN_ANSWER]
    return [*changed[:1], *kept[:1]]


def _bars(row: Mapping[Column, object], lanes: Sequence[Probe]) -> list[Bar]:
    found = [(probe, row.get((probe.heading, "EM"))) for probe in lanes]
    return [
        _bar(lanes.index(probe), probe.title, cell)
        for probe, cell in found
        if isinstance(cell, Summary) and cell.n and isfinite(cell.mean)
    ]


def _bar(lane: int, probe: str, cell: Summary) -> Bar:
    low, high = (cell.mean, cell.mean) if isnan(cell.low) else (cell.low, cell.high)
    return Bar(lane, probe, cell.mean, low, high - low)
