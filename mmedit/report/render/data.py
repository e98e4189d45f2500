"""A method table as data: CSV and JSON, in long form and not rounded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite

import pandas

from mmedit.report.columns import COST, Column, N, measure_of
from mmedit.report.published import NOT_COMPARABLE, Beside, Comparison
from mmedit.report.render.cells import Cell, cells
from mmedit.report.render.footnotes import footnote
from mmedit.report.run_tables import RunTable
from mmedit.report.table import Score, column_names


def as_csv(table: pandas.DataFrame, published: Comparison | None) -> str:
    """Write a method table as CSV, one line per cell, not rounded."""
    rows = [row | _cost_row(table, row["editor"]) for row in _long_rows(table, published)]
    return pandas.DataFrame(rows).to_csv(index=False)


def all_as_csv(tables: Sequence[RunTable]) -> str:
    """Write tables of runs as one CSV, one line per cell, with the origin of each line."""
    rows = [
        row | _cost_row(one.frame, row["editor"]) | _origin(one)
        for one in tables
        for row in _long_rows(one.frame, one.published)
    ]
    return pandas.DataFrame(rows).to_csv(index=False)


def all_as_json(tables: Sequence[RunTable]) -> str:
    """Write the table of runs as JSON; several as `{"tables": [...]}`."""
    whole = [_origin(one) | _as_object(one.frame, one.published) for one in tables]
    return _json(whole[0] if len(whole) == 1 else {"tables": whole})


def _origin(table: RunTable) -> dict[str, object]:
    origin = table.origin
    return {
        "table": table.title,
        "vlm": origin.vlm,
        "dataset": origin.dataset,
        "mode": origin.mode,
    }


def as_json(table: pandas.DataFrame, published: Comparison | None) -> str:
    """Write a method table as JSON, not rounded."""
    return _json(_as_object(table, published))


def _json(content: object) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _as_object(table: pandas.DataFrame, published: Comparison | None) -> dict[str, object]:
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
    return whole


def _long_rows(table: pandas.DataFrame, published: Comparison | None) -> list[dict[str, object]]:
    """Make one row per cell, as measured, not rounded."""
    values = {(row.editor, row.heading, row.measure.name): row for row in (published or _NONE).rows}
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
        "mean": _finite(score.mean),
        "low": _finite(score.low),
        "high": _finite(score.high),
        "n": score.n,
        "failed": score.failed,
        "metric_class": measure.metric if measure else None,
        "best": cell.best,
        "p_to_best": score.p_to_best,
        "tied_with_best": cell.tied,
    }


def _finite(value: object) -> object:
    """Return None in place of NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not isfinite(value) else value


def _published_row(beside: Beside | None) -> dict[str, object]:
    if beside is None:
        return {"published": None, "published_metric": None, "difference": None}
    known = beside.difference if beside.difference is not None else NOT_COMPARABLE
    difference = None if not isfinite(beside.measured.mean) else known
    return {
        "published": beside.value,
        "published_metric": beside.metric,
        "difference": difference,
    }


def _cost_row(table: pandas.DataFrame, editor: object) -> dict[str, object]:
    return {
        name: _finite(table.loc[editor, (group, name)])
        for group, name in column_names(table)
        if group == COST
    }
