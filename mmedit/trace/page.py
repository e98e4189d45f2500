"""One HTML page about a trace: its plots, and single items with the cells of their images shaded.

The page loads nothing from outside and has no script; every string of the records is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import ChoiceLoader, DictLoader, FileSystemLoader
from PIL import Image

from mmedit.report.render.html import TEMPLATES as REPORT
from mmedit.report.render.sequence_plots import svg_of
from mmedit.report.render.thumbnails import data_uri
from mmedit.storage import write_atomically
from mmedit.trace.captions import notes_of, title_of
from mmedit.trace.plots import curves, heat_map
from mmedit.trace.records import Cells, TraceRecord
from mmedit.trace.summary import NOTICED, Trace, effect_of

PAGE = "trace.html"
ITEMS = 40
"""Number of items that the page shows."""
FULL = 0.1
"""Recovery rate of a cell that may have the full colour, at least."""
TOO_LITTLE = f"The corruption takes away less than {NOTICED} of the answer's probability."
TEMPLATES = REPORT.overlay(
    loader=ChoiceLoader([FileSystemLoader(Path(__file__).parent), REPORT.loader or DictLoader({})])
)


@dataclass(frozen=True)
class Shade:
    """One cell of an image."""

    rate: float
    """Recovery rate of the cell in the item."""
    opacity: float
    """0 for no effect, 1 for the strongest effect in the item, if it is at least `FULL`."""


@dataclass(frozen=True)
class Row:
    """One group of an item, with the layer that brings back most."""

    group: str
    tokens: int
    layer: int | None
    """None if no layer brings anything back."""
    probability: float
    rate: float | None
    """Recovery rate; None if the corruption takes away too little."""


@dataclass(frozen=True)
class Item:
    """One item as the page shows it."""

    record: TraceRecord
    picture: str | None
    """The image as a data URI."""
    size: tuple[int, int]
    clean: float
    corrupt: float
    rows: tuple[Row, ...]
    layer: int | None
    """The layer whose cells are shown."""
    shades: tuple[Shade, ...]


def write_page(trace: Trace, folder: Path, images: Mapping[str, Path]) -> Path:
    """Write `trace.html`, with the small images of the items by id; return its path."""
    figures = {f"heat map of {one}": heat_map(trace, one) for one in trace.components}
    figures["recovery rate by layer"] = curves(trace)
    page = TEMPLATES.get_template("trace.html.j2").render(
        title=title_of(trace),
        manifest=trace.manifest,
        notes=notes_of(trace),
        best=trace.best(),
        figures={name: data_uri(svg_of(figure), "svg+xml") for name, figure in figures.items()},
        items=[item_of(record, images.get(record.id)) for record in trace.records[:ITEMS]],
        total=len(trace.records),
        too_little=TOO_LITTLE,
        full=FULL,
    )
    write_atomically(folder / PAGE, page.encode())
    return folder / PAGE


def item_of(record: TraceRecord, image: Path | None) -> Item:
    """Return an item as the page shows it."""
    component = next(iter(record.restored))
    restored = np.array(record.restored[component].answer)
    clean, corrupt = record.clean.mean("answer"), record.corrupt.mean("answer")
    total = effect_of(record, "answer")
    rows = []
    for group, values in zip(record.groups, restored, strict=True):
        best = int(values.argmax())
        rate = (float(values[best]) - corrupt) / total if total >= NOTICED else None
        layer = best if values[best] > corrupt else None
        rows.append(Row(group.name, group.tokens, layer, float(values[best]), rate))
    layer, shades = _shades(record.cells, corrupt, total)
    picture, size = None, (0, 0)
    if image is not None:
        picture = data_uri(image.read_bytes(), "webp")
        with Image.open(image) as opened:
            size = opened.size
    return Item(record, picture, size, clean, corrupt, tuple(rows), layer, shades)


def _shades(
    cells: Cells | None, corrupt: float, total: float
) -> tuple[int | None, tuple[Shade, ...]]:
    """Return the layer in which one cell brings back most, and the shades of all its cells."""
    if cells is None or total < NOTICED:
        return None, ()
    rates = (np.array(cells.restored.answer) - corrupt) / total
    best = int(rates.max(0).argmax())
    strongest = max(float(np.abs(rates[:, best]).max()), FULL)
    shades = [Shade(rate, abs(rate) / strongest) for rate in rates[:, best].tolist()]
    return cells.layers[best], tuple(shades)
