"""The footnote of a method table: abbreviations, metrics, n, intervals, tests, costs."""

from __future__ import annotations

from math import isnan

import pandas

from mmedit.cases import Probe
from mmedit.report.columns import COMBINED, Column, Measure, N, cost_of, measure_of
from mmedit.report.intervals import LEVEL, RESAMPLES
from mmedit.report.render.cells import TIED, UNKNOWN, common_n
from mmedit.report.significance import ALPHA, PERMUTATIONS
from mmedit.report.table import BATCHES, NOTES, Score, column_names


def footnote(table: pandas.DataFrame, *, intervals: bool = True) -> str:
    """Write what a reader must know of a table; `intervals` says whether it shows them."""
    notes = (
        _probes_note(table),
        _metrics_note(table),
        *((_intervals_note(table), _unknown_note(table)) if intervals else ()),
        _marks_note(table),
        _costs_note(table),
        *table.attrs.get(NOTES, ()),
    )
    return " ".join(note for note in notes if note)


def _probes_note(table: pandas.DataFrame) -> str:
    shown = {heading for heading, _ in column_names(table)}
    titles = {probe.heading: probe.title.lower() for probe in Probe}
    titles |= {combined.heading: combined.title for combined in COMBINED}
    return (
        f"{', '.join(f'{heading}: {titles[heading]}' for heading in titles if heading in shown)}."
    )


def _metrics_note(table: pandas.DataFrame) -> str:
    counts = {group: common_n(table, (group, name)) for group, name in _scores(table)}
    fewer = [f", {n} in {heading}" for heading, n in counts.items() if n and {n} != set(table[N])]
    definitions: dict[str, str] = {}
    for _, measure in _measures(table):
        definitions.setdefault(measure.name, measure.definition)
    defined = "; ".join(f"{name}: {definition}" for name, definition in definitions.items())
    local = dict.fromkeys(h for h, m in _measures(table) if m.definition != definitions[m.name])
    agreement = f" ({' and '.join(local)}: agreement with the base model)" if local else ""
    limits = "".join(
        f" ({' and '.join(headings)}: of questions that the base model answered {among})"
        for among in ("wrong", "right")
        if (headings := dict.fromkeys(h for h, m in _measures(table) if m.among == among))
    )
    return f"{defined}{agreement}{limits}; mean over n edits{''.join(fewer)}, shares in percent."


def _scores(table: pandas.DataFrame) -> list[Column]:
    return [column for column in column_names(table) if measure_of(*column) is not None]


def _measures(table: pandas.DataFrame) -> list[tuple[str, Measure]]:
    found = [(column[0], measure_of(*column)) for column in _scores(table)]
    return [(heading, measure) for heading, measure in found if measure is not None]


def _intervals_note(table: pandas.DataFrame) -> str:
    names = dict.fromkeys(m.name for _, m in _measures(table) if m.all_or_nothing)
    wilson = "Wilson on the effective number of edits"
    return (
        f"±: half the {100 * LEVEL:.0f} % interval, or + and − if its sides differ ("
        f"bootstrap over images and identical probes, {RESAMPLES} resamples; {wilson} for "
        f"{', '.join([*names, 'shares that are the same in every edit'])})."
    )


def _unknown_note(table: pandas.DataFrame) -> str:
    scores = (cell for column in _scores(table) for cell in table[column])
    if not any(isinstance(cell, Score) and cell.n and isnan(cell.low) for cell in scores):
        return ""
    return (
        f"{UNKNOWN}: the interval is unknown, as all edits share an image or a question, or as a "
        "score without bounds is the same in every edit."
    )


def _marks_note(table: pandas.DataFrame) -> str:
    tested = any(
        isinstance(cell, Score) and cell.p_to_best is not None
        for column in _scores(table)
        for cell in table[column]
    )
    if not tested:
        return ""
    return (
        f"Bold: best of its column; {TIED}: not significantly different from it (paired over the "
        "edits that both have: exact McNemar for 0/1 scores if no image or probe repeats, else "
        f"{PERMUTATIONS:,} sign flips of whole clusters of them; p ≥ {ALPHA} after Holm's "
        "correction over the methods)."
    )


def _costs_note(table: pandas.DataFrame) -> str:
    costs = filter(None, map(cost_of, column_names(table)))
    shown = [f"{cost.name}: {cost.definition}" for cost in costs]
    return f"{'; '.join(shown)}.{_batches_note(table)}" if shown else ""


def _batches_note(table: pandas.DataFrame) -> str:
    """Say that the seconds of edits that were made together are a batch's, divided."""
    batches: dict[str, int] = table.attrs.get(BATCHES, {})
    sizes = sorted(set(batches.values()))
    if not sizes or sizes[-1] == 1:
        return ""
    each = ", ".join(f"{method} {size}" for method, size in batches.items())
    size = str(sizes[0]) if len(sizes) == 1 else f"up to {sizes[-1]} ({each})"
    return (
        f" Edits were computed in batches of {size}: s/edit is the time of a batch divided by its "
        "edits, and p95 s is over batches, not over single edits."
    )
