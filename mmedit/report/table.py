"""The paper's table: one row per method, and every split with both metrics, n and an interval.

A cell is the macro mean over edits. Locality is agreement with the unedited model, everything else
is the answer after the edit. Every method is tested against the best of its column on the edits
that both have; the p-values of a column are corrected together (`mmedit.report.significance`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import pandas

from mmedit.cases import Probe
from mmedit.errors import DataError, UnknownNameError
from mmedit.records.schema import Record
from mmedit.report.columns import COLUMN_SETS, HEADINGS, Measure
from mmedit.report.intervals import Summary
from mmedit.report.scores import BASE, EditScores, by_editor, edit_scores, is_base, pair
from mmedit.report.significance import holm, paired_test

__all__ = ["BASE", "HEADINGS", "Column", "Score", "column_names", "method_table"]

N = ("", "n")
COST = "cost"
EDIT_SECONDS = (COST, "s/edit")
EDIT_SECONDS_P95 = (COST, "p95 s")
MEMORY = (COST, "peak GB")
PARAMETERS = (COST, "params")
TRAINING_SECONDS = (COST, "train s")

Column = tuple[str, str]


@dataclass(frozen=True)
class Score(Summary):
    """A cell: the summary of one method's edits in one column, in the unit that is shown.

    `p_to_best` is the Holm-corrected p-value against the best method of the column; None for the
    best itself, for the unedited model, and where the two have no edit in common.
    """

    p_to_best: float | None = None


NOTES = "notes"
"""What the table's footnote says of the runs, in `DataFrame.attrs`."""


def method_table(
    records: Sequence[Record],
    *,
    columns: str = "default",
    training_seconds: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> pandas.DataFrame:
    """Aggregate records to one row per editor, in the order in which the editors first appear.

    The columns have two levels: every split that was asked with the measures of `columns` ("tok",
    token accuracy, and "EM", exact match, by default) as `Score`; then ("cost", ...): seconds per
    edit (median, 95th percentile), peak memory, parameters added by an edit where that is recorded,
    seconds of training where `training_seconds` is given; and ("", "n"), the number of records. A
    split that one method lacks is None. `table.map(float, na_action="ignore")` gives the bare
    means. `notes` are for the footnote (`attrs[NOTES]`). Raises DataError for no records, and for
    NaN or a missing score in one of them.
    """
    if not records:
        raise DataError("no records to make a table of; give the records of at least one edit")
    if columns not in COLUMN_SETS:
        raise UnknownNameError("set of columns", columns, COLUMN_SETS)
    rows = by_editor(records)
    table: dict[Column, Sequence[object]] = {}
    for probe in Probe:
        for measure in COLUMN_SETS[columns].of(probe):
            scores = {editor: _scores(editor, rows[editor], probe, measure) for editor in rows}
            if any(found is not None for found in scores.values()):
                table[HEADINGS[probe], measure.name] = [*_column(probe, measure, scores).values()]
    if not table:
        raise DataError(
            f"the records hold none of the scores of --columns {columns}; measure the edits again "
            f"with them, or choose another of {', '.join(COLUMN_SETS)}"
        )
    table |= _costs(rows, training_seconds)
    table[N] = [len(found) for found in rows.values()]
    index = pandas.Index(list(rows), name="editor")
    frame = pandas.DataFrame(
        {column: pandas.Series(cells, index, dtype=object) for column, cells in table.items()}
    )
    frame.attrs[NOTES] = tuple(notes)
    return frame


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
    """The cells of a column by editor, tested against its best."""
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
    if found and is_base(editor) and probe.is_locality:  # itself with itself: nothing to estimate
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


def _costs(
    rows: Mapping[str, Sequence[Record]], training_seconds: Mapping[str, float] | None
) -> dict[Column, Sequence[object]]:
    seconds = [[record.seconds for record in records] for records in rows.values()]
    added = [extra_parameters(records) for records in rows.values()]
    costs: dict[Column, Sequence[object]] = {
        EDIT_SECONDS: [median(values) for values in seconds],
        EDIT_SECONDS_P95: [float(np.quantile(values, 0.95)) for values in seconds],
        MEMORY: [max(r.peak_memory_bytes for r in records) / 1e9 for records in rows.values()],
    }
    if any(number is not None for number in added):
        costs[PARAMETERS] = added
    if training_seconds is not None:
        costs[TRAINING_SECONDS] = [training_seconds.get(editor) for editor in rows]
    return costs


def extra_parameters(records: Sequence[Record]) -> int | None:
    """The most parameters that an edit of these records added; None where no record tells."""
    found = [record.extra_parameters for record in records]
    return max((number for number in found if number is not None), default=None)


def column_names(table: pandas.DataFrame) -> list[Column]:
    """The (group, name) of every column of a method table, in order."""
    return [(str(group), str(name)) for group, name in table.columns]
