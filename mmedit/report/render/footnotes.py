"""What a reader must know about a table: metrics, n, intervals, tests, costs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pandas

from mmedit.report.columns import Measure, measure_of
from mmedit.report.intervals import LEVEL, RESAMPLES
from mmedit.report.render.cells import TIED, common_n
from mmedit.report.significance import ALPHA, PERMUTATIONS
from mmedit.report.table import (
    EDIT_SECONDS,
    EDIT_SECONDS_P95,
    MEMORY,
    NOTES,
    PARAMETERS,
    TRAINING_SECONDS,
    Column,
    N,
    Score,
    column_names,
)

_COST_DEFINITIONS: Mapping[Column, str] = MappingProxyType(
    {
        EDIT_SECONDS: "median wall time of applying one edit",
        EDIT_SECONDS_P95: "its 95th percentile",
        MEMORY: "the most memory held until then (on a GPU by tensors, else by the process)",
        PARAMETERS: "the most parameters that an edit adds",
        TRAINING_SECONDS: "seconds of training before the first edit",
    }
)


def footnote(table: pandas.DataFrame, *, intervals: bool = True) -> str:
    """What stands in the table: metrics, n, intervals where they are shown, tests, costs."""
    notes = (
        _metrics_note(table),
        _intervals_note(table) if intervals else "",
        _marks_note(table),
        _costs_note(table),
        *table.attrs.get(NOTES, ()),
    )
    return " ".join(note for note in notes if note)


def _metrics_note(table: pandas.DataFrame) -> str:
    counts = {group: common_n(table, (group, name)) for group, name in _splits(table)}
    fewer = [f", {n} in {heading}" for heading, n in counts.items() if n and {n} != set(table[N])]
    definitions: dict[str, str] = {}
    for _, measure in _measures(table):
        definitions.setdefault(measure.name, measure.definition)
    defined = "; ".join(f"{name}: {definition}" for name, definition in definitions.items())
    local = dict.fromkeys(h for h, m in _measures(table) if m.definition != definitions[m.name])
    agreement = f" ({' and '.join(local)}: agreement with the unedited model)" if local else ""
    return f"{defined}{agreement}; mean over n edits{''.join(fewer)}, shares in percent."


def _splits(table: pandas.DataFrame) -> list[Column]:
    return [column for column in column_names(table) if measure_of(*column) is not None]


def _measures(table: pandas.DataFrame) -> list[tuple[str, Measure]]:
    found = [(column[0], measure_of(*column)) for column in _splits(table)]
    return [(heading, measure) for heading, measure in found if measure is not None]


def _intervals_note(table: pandas.DataFrame) -> str:
    names = dict.fromkeys(m.name for _, m in _measures(table) if m.all_or_nothing)
    wilson = "Wilson on the effective number of edits"
    return (
        f"±: half the {100 * LEVEL:.0f} % interval, or + and − where its sides differ ("
        f"bootstrap over images, {RESAMPLES} resamples; {wilson} for "
        f"{', '.join([*names, 'shares of 0 and of 100 %'])})."
    )


def _marks_note(table: pandas.DataFrame) -> str:
    tested = any(
        isinstance(cell, Score) and cell.p_to_best is not None
        for column in _splits(table)
        for cell in table[column]
    )
    if not tested:
        return ""
    return (
        f"Bold: best of its column; {TIED}: not significantly different from it (paired over the "
        "edits that both have: exact McNemar for 0/1 scores where every image occurs once, else "
        f"{PERMUTATIONS:,} sign flips of whole images; p ≥ {ALPHA} after Holm's correction over "
        "the methods)."
    )


def _costs_note(table: pandas.DataFrame) -> str:
    shown = [
        f"{column[1]}: {definition}"
        for column, definition in _COST_DEFINITIONS.items()
        if column in table.columns
    ]
    return f"{'; '.join(shown)}." if shown else ""
