"""A method table in HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmedit.report.columns import COST, Column, N
from mmedit.report.published import Comparison
from mmedit.report.render.cells import Cell, cells
from mmedit.report.render.footnotes import footnote
from mmedit.report.render.published import BESIDE, beside_note, beside_rows
from mmedit.report.run_tables import RunTable
from mmedit.report.table import column_names


def html(table: pandas.DataFrame, published: Comparison | None) -> str:
    """Write a method table as an HTML page."""
    return _page([_shown("", table, published)])


def all_html(tables: Sequence[RunTable]) -> str:
    """Write tables of runs as one HTML page; several have their titles above them."""
    return _page([_shown(one.title, one.frame, one.published) for one in tables])


def _page(tables: Sequence[Mapping[str, object]]) -> str:
    template = TEMPLATES.get_template("table.html.j2")
    return template.render(tables=tables, published_header=BESIDE)


def _shown(title: str, table: pandas.DataFrame, published: Comparison | None) -> dict[str, object]:
    return html_parts(table) | {
        "title": title,
        "published": published and beside_rows(published),
        "published_note": published and beside_note(published),
    }


@dataclass(frozen=True)
class Part:
    """Some columns of a method table as the template's macro `method_tables` shows them."""

    name: str
    groups: list[tuple[str, int]]
    """Heading of every group of columns, with the number of its columns."""
    names: list[str]
    rows: list[tuple[str, list[Cell]]]


def html_parts(table: pandas.DataFrame) -> dict[str, object]:
    """Return the variables of the macro `method_tables`: the scores, below them the costs.

    n is the first column of the scores, so that it stays in sight.
    """
    columns = column_names(table)
    costs = [column for column in columns if column[0] == COST]
    scores = [N, *(column for column in columns if column not in (N, *costs))]
    shown = cells(table)
    parts = [_part(shown, table, scores, "Scores of the methods")]
    parts += [_part(shown, table, costs, "Costs of the methods")] if costs else []
    return {"parts": parts, "footnote": footnote(table)}


def _part(
    shown: Mapping[Column, Sequence[Cell]],
    table: pandas.DataFrame,
    columns: Sequence[Column],
    name: str,
) -> Part:
    groups = [group for group, _ in columns]
    rows = zip(*(shown[column] for column in columns), strict=True)
    return Part(
        name,
        [(group, groups.count(group)) for group in dict.fromkeys(groups)],
        [name for _, name in columns],
        [(str(editor), list(row)) for editor, row in zip(table.index, rows, strict=True)],
    )


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
