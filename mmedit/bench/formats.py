"""A method table as text: Markdown, LaTeX, CSV, HTML, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from pathlib import Path
from types import MappingProxyType

import pandas
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmedit.bench.footnotes import footnote
from mmedit.bench.latex import latex_table
from mmedit.bench.marks import TIED, Cell, cells, summary_cell
from mmedit.bench.measures import measure_of
from mmedit.bench.published import NOT_COMPARABLE, Beside, Comparison
from mmedit.bench.tables import COST, Column, N, Score, column_names
from mmedit.errors import UnknownNameError

BESIDE = ("editor", "split", "metric", "measured", "published", "published metric", "difference")


def render(table: pandas.DataFrame, format: str, published: Comparison | None = None) -> str:
    """Write a method table as one of `FORMATS`; `published` adds the values of a paper.

    "latex" needs booktabs and graphicx; "csv" and "json" are in long form and not rounded.
    """
    if format not in FORMATS:
        raise UnknownNameError("table format", format, FORMATS)
    return FORMATS[format](table, published)


def beside_rows(published: Comparison) -> list[tuple[str, ...]]:
    """Published values beside measured ones, as they are shown, in the columns of `BESIDE`."""
    return [_beside_row(row) for row in published.rows]


def _beside_row(row: Beside) -> tuple[str, ...]:
    measured = summary_cell(row.measured, row.measure.format)
    value = f"{measured.value} {measured.spread}".strip()
    metric = f"{row.measure.name} ({row.measure.metric})"
    return row.editor, row.split, metric, value, f"{row.value:.2f}", row.metric, _difference(row)


def _difference(row: Beside) -> str:
    if row.difference is None:
        return NOT_COMPARABLE
    return f"{row.difference:+.1f}".replace("-", "−")


def beside_note(published: Comparison) -> str:
    """Where published values come from, and what has none."""
    return (
        f"Published: {published.source}. The difference is measured less published, in points; "
        f"“{NOT_COMPARABLE}”: the two are of different metric classes. {' '.join(published.notes)}"
    ).strip()


def _markdown(table: pandas.DataFrame, published: Comparison | None) -> str:
    header = ["editor", *(" ".join(column).strip() for column in column_names(table))]
    shown = zip(*cells(table).values(), strict=True)
    rows = [
        [str(editor), *map(_markdown_cell, row)]
        for editor, row in zip(table.index, shown, strict=True)
    ]
    blocks = [_markdown_table(header, rows, left=1), footnote(table)]
    if published:
        blocks += [_markdown_table(BESIDE, beside_rows(published), left=3), beside_note(published)]
    return "\n\n".join(blocks) + "\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Aligned; the first `left` columns to the left, the others to the right."""
    lines = [list(header), *([text.replace("|", "\\|") for text in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = [
        "-" * width if place < left else "-" * (width - 1) + ":"
        for place, width in enumerate(widths)
    ]
    return "\n".join(_markdown_line(line, widths, left) for line in (lines[0], rule, *lines[1:]))


def _markdown_line(line: Sequence[str], widths: Sequence[int], left: int) -> str:
    padded = [
        text.ljust(width) if place < left else text.rjust(width)
        for place, (text, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def _markdown_cell(cell: Cell) -> str:
    value = (f"**{cell.value}**" if cell.best else cell.value) + (TIED if cell.tied else "")
    note = f"(n={cell.n})" if cell.n is not None else ""
    return " ".join(part for part in (value, cell.spread, note) if part)


def _latex(table: pandas.DataFrame, published: Comparison | None) -> str:
    if published is None:
        return latex_table(table)
    beside = pandas.DataFrame(beside_rows(published), columns=list(BESIDE))
    return latex_table(table, beside, beside_note(published))


def _html(table: pandas.DataFrame, published: Comparison | None) -> str:
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


def _csv(table: pandas.DataFrame, published: Comparison | None) -> str:
    rows = [row | _cost_row(table, row["editor"]) for row in _long_rows(table, published)]
    return pandas.DataFrame(rows).to_csv(index=False)


def _json(table: pandas.DataFrame, published: Comparison | None) -> str:
    methods = [
        {"editor": str(editor), "n": table.loc[editor, N], "cost": _cost_row(table, editor)}
        for editor in table.index
    ]
    whole: dict[str, object] = {
        "methods": methods,
        "scores": _long_rows(table, published),
        "footnote": footnote(table),
    }
    if published:
        whole["published"] = {"source": published.source, "notes": published.notes}
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _long_rows(table: pandas.DataFrame, published: Comparison | None) -> list[dict[str, object]]:
    """One row per cell: as measured, not rounded."""
    values = {(row.editor, row.split, row.measure.name): row for row in (published or _NONE).rows}
    shown = cells(table)
    rows: list[dict[str, object]] = []
    for place, editor in enumerate(map(str, table.index)):
        for column in column_names(table):
            score = table.loc[editor, column]
            if isinstance(score, Score):
                row = _long_row(editor, column, score, shown[column][place])
                beside = values.get((editor, *column))
                rows.append(row | (_published_row(beside) if published else {}))
    return rows


_NONE = Comparison("", (), ())


def _long_row(editor: str, column: Column, score: Score, cell: Cell) -> dict[str, object]:
    measure = measure_of(*column)
    return {
        "editor": editor,
        "split": column[0],
        "metric": column[1],
        "mean": score.mean,
        "low": None if isnan(score.low) else score.low,
        "high": None if isnan(score.high) else score.high,
        "n": score.n,
        "metric_class": measure.metric if measure else None,
        "best": cell.best,
        "p_to_best": score.p_to_best,
        "tied_with_best": cell.tied,
    }


def _published_row(beside: Beside | None) -> dict[str, object]:
    if beside is None:
        return {"published": None, "published_metric": None, "difference": None}
    difference = NOT_COMPARABLE if beside.difference is None else beside.difference
    return {
        "published": beside.value,
        "published_metric": beside.metric,
        "difference": difference,
    }


def _cost_row(table: pandas.DataFrame, editor: object) -> dict[str, object]:
    return {
        name: table.loc[editor, (group, name)]
        for group, name in column_names(table)
        if group == COST
    }


FORMATS: Mapping[str, Callable[[pandas.DataFrame, Comparison | None], str]] = MappingProxyType(
    {"md": _markdown, "latex": _latex, "csv": _csv, "html": _html, "json": _json}
)
