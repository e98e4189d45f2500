"""A method table as text: Markdown, LaTeX, CSV, HTML, JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import pandas

from mmedit.errors import UnknownNameError
from mmedit.report.published import Comparison
from mmedit.report.render.data import as_csv, as_json
from mmedit.report.render.html import html
from mmedit.report.render.latex import latex
from mmedit.report.render.markdown import markdown

FORMATS: Mapping[str, Callable[[pandas.DataFrame, Comparison | None], str]] = MappingProxyType(
    {"md": markdown, "latex": latex, "csv": as_csv, "html": html, "json": as_json}
)


def render(table: pandas.DataFrame, format: str, published: Comparison | None = None) -> str:
    """Write a method table as one of `FORMATS`; `published` adds the values of a paper.

    "latex" needs booktabs and graphicx; "csv" and "json" are in long form and not rounded.
    """
    if format not in FORMATS:
        raise UnknownNameError("table format", format, FORMATS)
    return FORMATS[format](table, published)
