"""The paper's table: one row per method, and every probe with both metrics, n and an interval.

A cell is the macro mean over edits. Locality is agreement with the base model; every other score is
of the answer after the edit. Each method is tested against the best of its column on the edits that
both have; the p-values of a column are corrected together (`mmedit.report.significance`). An edit
with NaN or infinite output is left out of the means and counted in a note; its method does not
compete in the columns that it is left out of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas

from mmedit.cases import Probe
from mmedit.errors import DataError, UnknownNameError
from mmedit.records.schema import Record
from mmedit.report.columns import COLUMN_SETS, COSTS, Column, N, NotedCosts
from mmedit.report.cut_off import cut_off_notes
from mmedit.report.intervals import Summary
from mmedit.report.scores import (
    EditScores,
    asked_edits,
    by_editor,
    combined_scores,
    failures,
    is_base,
    pair,
    scores_of,
)
from mmedit.report.significance import holm, paired_test


@dataclass(frozen=True)
class Score(Summary):
    """A cell: the summary of one method's edits in one column, in the unit that is shown.

    `p_to_best` is the Holm-corrected p-value against the best method of the column. It is None for
    the best itself, for the base model, for a method of which edits failed, and if the two have no
    edit in common. `mean` is NaN if all edits failed.
    """

    p_to_best: float | None = None
    failed: int = 0
    """Number of edits that `mean` and `n` leave out, as the output was NaN or infinite."""


BATCHES = "batches"
"""Key in `DataFrame.attrs` of the number of edits that were computed together, by method."""
NOTES = "notes"
"""Key in `DataFrame.attrs` of what the footnote says about the runs."""


def method_table(
    records: Sequence[Record],
    *,
    columns: str = "default",
    training_seconds: Mapping[str, float] | None = None,
    latencies: Mapping[str, Sequence[float]] | None = None,
    notes: Sequence[str] = (),
) -> pandas.DataFrame:
    """Aggregate records to one row per editor, in the order in which the editors first appear.

    The columns have two levels: (heading, name) for the scores of each probe, as `Score`, by
    default token accuracy "tok" and exact match "EM"; ("cost", name) for the costs that are known;
    ("", "n") for the number of records. A probe that one method lacks is None there.
    `table.map(float, na_action="ignore")` gives the bare means. `notes` are for the footnote
    (`attrs[NOTES]`), which counts the edits with NaN or infinite output too; `latencies` are the
    seconds of edits made one at a time, by editor. Raises DataError for no records, and for a
    missing score in one of them.
    """
    if not records:
        raise DataError("no records to make a table of; give the records of at least one edit")
    rows = by_editor(records)
    scores = _scores(rows, columns)
    table: dict[Column, Sequence[object]] = {
        **{column: _cells(by_editor) for column, by_editor in scores.items()},
        **_cost_columns(rows, training_seconds or {}, latencies or {}),
        N: [len(found) for found in rows.values()],
    }
    index = pandas.Index(list(rows), name="editor")
    frame = pandas.DataFrame(
        {column: pandas.Series(cells, index, dtype=object) for column, cells in table.items()}
    )
    cut_off = cut_off_notes(rows) if columns == "generation" else []
    frame.attrs[NOTES] = (*notes, *_failure_notes(rows, scores), *cut_off)
    frame.attrs[BATCHES] = {
        editor: max(record.batch for record in found)
        for editor, found in rows.items()
        if not is_base(editor)
    }
    return frame


def _scores(
    rows: Mapping[str, Sequence[Record]], columns: str
) -> dict[Column, dict[str, EditScores | None]]:
    """Return the values of each score column that a row has, by editor."""
    if columns not in COLUMN_SETS:
        raise UnknownNameError("set of columns", columns, COLUMN_SETS)
    table: dict[Column, dict[str, EditScores | None]] = {}
    shown = {probe: found for probe in Probe if (found := COLUMN_SETS[columns].of(probe))}
    together = [probe for one in COLUMN_SETS[columns].combined for probe, _ in one.parts]
    probes = dict.fromkeys([*shown, *together])
    asked = {editor: asked_edits(records, probes) for editor, records in rows.items()}
    for probe, measures in shown.items():
        for measure in measures:
            scores = {editor: scores_of(found[probe], measure) for editor, found in asked.items()}
            if any(found is not None for found in scores.values()):
                table[probe.heading, measure.name] = scores
    for combined in COLUMN_SETS[columns].combined:
        scores = {editor: combined_scores(found, combined) for editor, found in asked.items()}
        if any(found is not None for found in scores.values()):
            table[combined.heading, combined.measure.name] = scores
    if not table:
        raise DataError(
            f"the records have none of the scores of --columns {columns}; measure the edits again "
            f"with them, or choose another of {', '.join(COLUMN_SETS)}"
        )
    return table


def _failure_notes(
    rows: Mapping[str, Sequence[Record]], scores: Mapping[Column, Mapping[str, EditScores | None]]
) -> list[str]:
    """Count the edits of each row with NaN or infinite output, in a column or on any probe."""
    notes = []
    for editor, records in rows.items():
        found = (by_editor[editor] for by_editor in scores.values())
        failed = {key for one in found if one is not None for key in one.failed}
        failed |= {record.key for record in records if not record.is_finite}
        if failed:
            notes.append(f"{editor}: {failures(len(failed), len(records))}.")
    return notes


def _cost_columns(
    rows: Mapping[str, Sequence[Record]],
    training_seconds: Mapping[str, float],
    latencies: Mapping[str, Sequence[float]],
) -> dict[Column, Sequence[object]]:
    noted = {e: NotedCosts(training_seconds.get(e), latencies.get(e, ())) for e in rows}
    costs = {
        cost.column: [cost.of(records, noted[editor]) for editor, records in rows.items()]
        for cost in COSTS
    }
    return {
        column: values
        for column, values in costs.items()
        if any(value is not None for value in values)
    }


def _cells(scores: Mapping[str, EditScores | None]) -> list[Score | None]:
    """Return the cells of a column, tested against its best."""
    competing = {
        editor: found
        for editor, found in scores.items()
        if found is not None and not found.failed and not is_base(editor)
    }
    p_values = _p_to_best(competing)
    return [
        found and _cell(editor, found, p_values.get(editor)) for editor, found in scores.items()
    ]


_AGAINST_BASE = ("locality/", "generation/unchanged", "generation/leak")
"""Beginnings of the metric classes that compare an edited model with the base model."""


def _cell(editor: str, scores: EditScores, p_to_best: float | None) -> Score:
    found = scores.summary()
    low, high = found.low, found.high
    if is_base(editor) and scores.measure.metric.startswith(_AGAINST_BASE):  # with itself
        low = high = found.mean
    return Score(found.mean, low, high, found.n, p_to_best=p_to_best, failed=len(scores.failed))


def _p_to_best(scores: Mapping[str, EditScores]) -> dict[str, float]:
    if len(scores) < 2:
        return {}
    better = next(iter(scores.values())).measure.better
    if better == "neither":
        return {}
    sign = -1 if better == "lower" else 1
    best = max(scores, key=lambda editor: sign * scores[editor].values.mean())
    found: dict[str, float] = {}
    for editor in (label for label in scores if label != best):
        pairs = pair(scores[best], scores[editor])
        if pairs.edits:
            found[editor] = paired_test(pairs.first, pairs.second, pairs.clusters).p
    return dict(zip(found, holm(list(found.values())), strict=True))


def column_names(table: pandas.DataFrame) -> list[Column]:
    """Return the (group, name) of every column of a method table, in order."""
    return [(str(group), str(name)) for group, name in table.columns]
