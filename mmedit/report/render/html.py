"""A method table in HTML."""

from __future__ import annotations

from pathlib import Path

import pandas
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmedit.report.columns import N
from mmedit.report.published import Comparison
from mmedit.report.render.cells import cells
from mmedit.report.render.footnotes import footnote
from mmedit.report.render.published import BESIDE, beside_note, beside_rows
from mmedit.report.table import column_names


def html(table: pandas.DataFrame, published: Comparison | None) -> str:
    """Write a method table as an HTML page."""
    return TEMPLATES.get_template("table.html.j2").render(
        **html_parts(table),
        published=published and beside_rows(published),
        published_header=BESIDE,
        published_note=published and beside_note(published),
    )


def html_parts(table: pandas.DataFrame) -> dict[str, object]:
    """What the template's macro `method_table` shows: n first, so that it stays in sight."""
    names = sorted(column_names(table), key=lambda column: column != N)
    groups = [group for group, _ in names]
    shown = cells(table)
    rows = zip(*(shown[name] for name in names), strict=True)
    return {
        "groups": [(group, groups.count(group)) for group in dict.fromkeys(groups)],
        "names": [name for _, name in names],
        "rows": list(zip(table.index, rows, strict=True)),
        "footnote": footnote(table),
    }


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
