"""Method tables as text: Markdown, LaTeX, CSV, HTML, JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import pandas

from mmedit.errors import UnknownNameError
from mmedit.report.published import Comparison
from mmedit.report.render.data import all_as_csv, all_as_json, as_csv, as_json
from mmedit.report.render.html import all_html, html
from mmedit.report.render.latex import all_latex, latex
from mmedit.report.render.markdown import all_markdown, markdown
from mmedit.report.run_tables import RunTable

FORMATS: Mapping[str, Callable[[pandas.DataFrame, Comparison | None], str]] = MappingProxyType(
    {"md": markdown, "latex": latex, "csv": as_csv, "html": html, "json": as_json}
)
_OF_SEVERAL: Mapping[str, Callable[[Sequence[RunTable]], str]] = MappingProxyType(
    {
        "md": all_markdown,
        "latex": all_latex,
        "csv": all_as_csv,
        "html": all_html,
        "json": all_as_json,
    }
)


def render(table: pandas.DataFrame, format: str, published: Comparison | None = None) -> str:
    """Write a method table as one of `FORMATS`; `published` adds the values of a paper.

    "latex" needs booktabs and graphicx; "csv" and "json" are in long form and not rounded.
    """
    if format not in FORMATS:
        raise UnknownNameError("table format", format, FORMATS)
    return FORMATS[format](table, published)


def render_all(tables: Sequence[RunTable], format: str) -> str:
    """Write the tables of runs as one of `FORMATS`. Several tables each have a title and notes.

    "csv" and "json" also say title, VLM, dataset and mode.
    """
    if format not in _OF_SEVERAL:
        raise UnknownNameError("table format", format, _OF_SEVERAL)
    return _OF_SEVERAL[format](tables)
