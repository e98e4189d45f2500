"""What of a table is shown, and how it is marked: rounded values, intervals, the best of a column,
and the values that are not significantly different from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from types import MappingProxyType

import pandas

from mmedit.report.columns import measure_of
from mmedit.report.intervals import Summary
from mmedit.report.scores import is_base
from mmedit.report.significance import ALPHA
from mmedit.report.table import (
    COST,
    EDIT_SECONDS,
    EDIT_SECONDS_P95,
    MEMORY,
    PARAMETERS,
    TRAINING_SECONDS,
    Column,
    N,
    Score,
    column_names,
)

MISSING = "–"
TIED = "†"


@dataclass(frozen=True)
class Cell:
    """One cell as it is shown, rounded."""

    value: str
    spread: str = ""
    """The interval around the value: "±1.5", or "+1.0 −2.3" where its sides differ."""
    n: int | None = None  # only where neither the row nor the footnote tells it
    best: bool = False
    tied: bool = False
    """Not the best, and not significantly different from it."""


def cells(table: pandas.DataFrame) -> dict[Column, list[Cell]]:
    """Round a table to what is shown, column by column, and mark the best value of each.

    Values that look the same tie, and ties are all best. The unedited model competes in no column:
    its locality is 100 by definition and it costs nothing. One method alone is not best either, nor
    the cheapest where another's cost is unknown or all cost the same.
    """
    return {column: _column(table, column) for column in column_names(table)}


def _column(table: pandas.DataFrame, column: Column) -> list[Cell]:
    plain = [_cell(column, value) for value in table[column]]
    best = _best(table, column, plain)
    shown = []
    for editor, value, cell, n in zip(
        table.index, table[column], plain, _own_counts(table, column), strict=True
    ):
        is_best = cell.value == best and not is_base(editor)
        shown.append(replace(cell, n=n, best=is_best, tied=_is_tied(value) and not is_best))
    return shown


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
    """The n of a split where all methods that have it agree; otherwise n stands in the cells."""
    counts = {cell.n for cell in table[column] if isinstance(cell, Summary)}
    return counts.pop() if len(counts) == 1 else None


def _best(table: pandas.DataFrame, column: Column, plain: Sequence[Cell]) -> str | None:
    """How the best value of a column looks; None where none shall be called so."""
    rivals = {
        str(editor): (cell.value, value)
        for editor, value, cell in zip(table.index, table[column], plain, strict=True)
        if not is_base(str(editor))
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


def _cell(column: Column, value: object) -> Cell:
    if value is None or (isinstance(value, float) and isnan(value)):
        return Cell(MISSING)
    if isinstance(value, Summary):
        measure = measure_of(*column)
        return summary_cell(value, measure.format if measure else ".1f")
    return Cell(_COSTS.get(column, str)(value))


def summary_cell(summary: Summary, format: str) -> Cell:
    """A mean and its interval: one half-width, or both sides where they differ by a quarter."""
    value = f"{summary.mean:{format}}"
    up, down = summary.high - summary.mean, summary.mean - summary.low
    if isnan(up) or summary.high == summary.low:
        return Cell(value)
    if abs(up - down) <= summary.half_width / 4:
        return Cell(value, f"±{summary.half_width:{format}}")
    sides = [(sign, f"{side:{format}}") for sign, side in (("+", up), ("−", down))]
    return Cell(value, " ".join(sign + side for sign, side in sides if float(side)))


def _seconds(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:.0f}"
    if seconds >= 1:
        return f"{seconds:.2f}"
    return f"{seconds:#.2g}" if seconds >= 1e-4 else "0"


def _parameters(number: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


_COSTS: Mapping[Column, Callable[..., str]] = MappingProxyType(
    {
        EDIT_SECONDS: _seconds,
        EDIT_SECONDS_P95: _seconds,
        MEMORY: "{:.2f}".format,
        PARAMETERS: _parameters,
        TRAINING_SECONDS: _seconds,
    }
)
