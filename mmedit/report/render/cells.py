"""The cells of a method table as they are shown: rounded values, intervals, the best value of each
column, and the values that do not differ significantly from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import pandas

from mmedit.report.columns import COST, Column, N, cost_of, measure_of
from mmedit.report.intervals import Summary
from mmedit.report.scores import is_base
from mmedit.report.significance import ALPHA
from mmedit.report.table import Score, column_names

MISSING = "–"
UNKNOWN = "±?"
"""Spread of a value whose interval is unknown."""
TIED = "†"


@dataclass(frozen=True)
class Cell:
    """One cell as it is shown, rounded."""

    value: str
    spread: str = ""
    """The interval around the value: "±1.5", or "+1.0 −2.3" where its sides differ."""
    n: int | None = None
    """Number of edits; None if the row's n or the footnote says it."""
    best: bool = False
    tied: bool = False
    """True if it is not the best, but does not differ significantly from it."""


def cells(table: pandas.DataFrame) -> dict[Column, list[Cell]]:
    """Round the values of a table and mark the best of each column.

    Values that look the same tie, and all of them are best. The base model competes in no column:
    its locality is 100 by definition and it costs nothing. A method does not compete in a column
    that leaves out edits with NaN or infinite output. No cell is best if there is one method only;
    nor among costs if one of them is unknown or all are equal.
    """
    return {column: _column(table, column) for column in column_names(table)}


def _column(table: pandas.DataFrame, column: Column) -> list[Cell]:
    plain = [_cell(column, value) for value in table[column]]
    best = _best(table, column, plain)
    shown = []
    for editor, value, cell, n in zip(
        table.index, table[column], plain, _own_counts(table, column), strict=True
    ):
        is_best = cell.value == best and _competes(editor, value)
        shown.append(replace(cell, n=n, best=is_best, tied=_is_tied(value) and not is_best))
    return shown


def _competes(editor: object, value: object) -> bool:
    return not is_base(str(editor)) and not (isinstance(value, Score) and value.failed)


def _is_tied(value: object) -> bool:
    return isinstance(value, Score) and value.p_to_best is not None and value.p_to_best >= ALPHA


def _own_counts(table: pandas.DataFrame, column: Column) -> list[int | None]:
    if common_n(table, column) is not None:
        return [None] * len(table)
    return [
        cell.n if isinstance(cell, Summary) and cell.n != n else None
        for cell, n in zip(table[column], table[N], strict=True)
    ]


def common_n(table: pandas.DataFrame, column: Column) -> int | None:
    """Return the n that all cells of a column share, else None: each cell then says its own."""
    counts = {cell.n for cell in table[column] if isinstance(cell, Summary)}
    return counts.pop() if len(counts) == 1 else None


def _best(table: pandas.DataFrame, column: Column, plain: Sequence[Cell]) -> str | None:
    """Return the best value of a column as it is shown, None if no cell is to be marked."""
    rivals = {
        str(editor): (cell.value, value)
        for editor, value, cell in zip(table.index, table[column], plain, strict=True)
        if _competes(editor, value)
    }
    known = {text: float(value) for text, value in rivals.values() if text != MISSING}
    measure, is_cost = measure_of(*column), column[0] == COST
    missing = sum(text == MISSING for text, _ in rivals.values())
    unranked = column == N or (measure is not None and measure.better == "neither")
    told_apart = len(known) > 1 and not missing if is_cost else len(rivals) - missing > 1
    if unranked or not told_apart:
        return None
    lower = is_cost or (measure is not None and measure.better == "lower")
    return (min if lower else max)(known, key=known.__getitem__)


def _cell(column: Column, value: Any) -> Cell:
    if value is None or (isinstance(value, float) and isnan(value)):
        return Cell(MISSING)
    if isinstance(value, Summary):
        measure = measure_of(*column)
        return summary_cell(value, measure.format if measure else ".1f")
    cost = cost_of(column)
    return Cell(cost.text(value) if cost else str(value))


def summary_cell(summary: Summary, format: str) -> Cell:
    """Round a mean and its interval: one half-width, or both sides if they differ by a quarter.

    A mean of no values is missing.
    """
    if isnan(summary.mean):
        return Cell(MISSING)
    value = f"{summary.mean:{format}}"
    up, down = summary.high - summary.mean, summary.mean - summary.low
    if isnan(up):
        return Cell(value, UNKNOWN)
    if summary.high == summary.low:
        return Cell(value)
    if abs(up - down) <= summary.half_width / 4:
        return Cell(value, f"±{summary.half_width:{format}}")
    sides = [(sign, f"{side:{format}}") for sign, side in (("+", up), ("−", down))]
    return Cell(value, " ".join(sign + side for sign, side in sides if float(side)))
