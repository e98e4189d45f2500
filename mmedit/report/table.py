"""The paper's table: one row per method, and every probe with both metrics, n and an interval.

A cell is the macro mean over edits. Locality is agreement with the base model; every other score is
of the answer after the edit. Each method is tested against the best of its column on the edits that
both have; the p-values of a column are corrected together (`mmedit.report.significance`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas

from mmedit.cases import Probe
from mmedit.errors import DataError, UnknownNameError
from mmedit.records.schema import Record
from mmedit.report.columns import COLUMN_SETS, COSTS, Column, Measure, N
from mmedit.report.intervals import Summary
from mmedit.report.scores import EditScores, by_editor, edit_scores, is_base, pair
from mmedit.report.significance import holm, paired_test


@dataclass(frozen=True)
class Score(Summary):
    """A cell: the summary of one method's edits in one column, in the unit that is shown.

    `p_to_best` is the Holm-corrected p-value against the best method of the column. It is None for
    the best itself, for the base model, and if the two have no edit in common.
    """

    p_to_best: float | None = None


NOTES = "notes"
"""Key in `DataFrame.attrs` of what the footnote says about the runs."""


def method_table(
    records: Sequence[Record],
    *,
    columns: str = "default",
    training_seconds: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> pandas.DataFrame:
    """Aggregate records to one row per editor, in the order in which the editors first appear.

    The columns have two levels: (heading, name) for the scores of each probe, as `Score`, by
    default token accuracy "tok" and exact match "EM"; ("cost", name) for the costs that are known;
    ("", "n") for the number of records. A probe that one method lacks is None there.
    `table.map(float, na_action="ignore")` gives the bare means. `notes` are for the footnote
    (`attrs[NOTES]`). Raises DataError for no records, and for NaN or a missing score in one of
    them.
    """
    if not records:
        raise DataError("no records to make a table of; give the records of at least one edit")
    rows = by_editor(records)
    table: dict[Column, Sequence[object]] = {
        **_score_columns(rows, columns),
        **_cost_columns(rows, training_seconds or {}),
        N: [len(found) for found in rows.values()],
    }
    index = pandas.Index(list(rows), name="editor")
    frame = pandas.DataFrame(
        {column: pandas.Series(cells, index, dtype=object) for column, cells in table.items()}
    )
    frame.attrs[NOTES] = tuple(notes)
    return frame


def _score_columns(
    rows: Mapping[str, Sequence[Record]], columns: str
) -> dict[Column, Sequence[object]]:
    if columns not in COLUMN_SETS:
        raise UnknownNameError("set of columns", columns, COLUMN_SETS)
    table: dict[Column, Sequence[object]] = {}
    for probe in Probe:
        for measure in COLUMN_SETS[columns].of(probe):
            scores = {editor: _scores(editor, rows[editor], probe, measure) for editor in rows}
            if any(found is not None for found in scores.values()):
                table[probe.heading, measure.name] = [*_column(probe, measure, scores).values()]
    if not table:
        raise DataError(
            f"the records have none of the scores of --columns {columns}; measure the edits again "
            f"with them, or choose another of {', '.join(COLUMN_SETS)}"
        )
    return table


def _cost_columns(
    rows: Mapping[str, Sequence[Record]], training_seconds: Mapping[str, float]
) -> dict[Column, Sequence[object]]:
    costs = {
        cost.column: [
            cost.of(records, training_seconds.get(editor)) for editor, records in rows.items()
        ]
        for cost in COSTS
    }
    return {
        column: values
        for column, values in costs.items()
        if any(value is not None for value in values)
    }


def _scores(
    editor: str, records: Sequence[Record], probe: Probe, measure: Measure
) -> EditScores | None:
    found = edit_scores(records, probe, measure)
    if found is not None and (bad := int((~np.isfinite(found.values)).sum())):
        raise DataError(
            f"{editor}, {probe.value}: {bad} of {len(found.values)} values are NaN or infinite in "
            f"{measure.metric}; a mean over the rest would hide a failed edit"
        )
    return found


def _column(
    probe: Probe, measure: Measure, scores: Mapping[str, EditScores | None]
) -> dict[str, Score | None]:
    """Return the cells of a column by editor, tested against its best."""
    summaries = {editor: _summary(editor, probe, found) for editor, found in scores.items()}
    competing = {
        editor: found
        for editor, found in scores.items()
        if found is not None and not is_base(editor)
    }
    p_values = _p_to_best(competing) if measure.better != "neither" else {}
    return {
        editor: found
        and Score(found.mean, found.low, found.high, found.n, p_to_best=p_values.get(editor))
        for editor, found in summaries.items()
    }


def _summary(editor: str, probe: Probe, scores: EditScores | None) -> Summary | None:
    found = scores and scores.summary()
    if found and is_base(editor) and probe.is_locality:  # compared with itself
        return Summary(found.mean, found.mean, found.mean, found.n)
    return found


def _p_to_best(scores: Mapping[str, EditScores]) -> dict[str, float]:
    if len(scores) < 2:
        return {}
    sign = -1 if next(iter(scores.values())).measure.better == "lower" else 1
    best = max(scores, key=lambda editor: sign * scores[editor].values.mean())
    found: dict[str, float] = {}
    for editor in scores:
        pairs = pair(scores[best], scores[editor])
        if editor != best and pairs.cases:
            found[editor] = paired_test(pairs.first, pairs.second, pairs.clusters).p
    return dict(zip(found, holm(list(found.values())), strict=True))


def column_names(table: pandas.DataFrame) -> list[Column]:
    """Return the (group, name) of every column of a method table, in order."""
    return [(str(group), str(name)) for group, name in table.columns]
