"""Published values beside measured ones, as text."""

from __future__ import annotations

from math import isnan

from mmedit.report.published import NOT_COMPARABLE, Beside, Comparison
from mmedit.report.render.cells import MISSING, summary_cell

BESIDE = ("editor", "probe", "metric", "measured", "published", "published metric", "difference")


def beside_rows(published: Comparison) -> list[tuple[str, ...]]:
    """Write published values beside measured ones, in the columns of `BESIDE`."""
    return [_beside_row(row) for row in published.rows]


def _beside_row(row: Beside) -> tuple[str, ...]:
    measured = summary_cell(row.measured, row.measure.format)
    value = f"{measured.value} {measured.spread}".strip()
    metric = f"{row.measure.name} ({row.measure.metric})"
    return row.editor, row.heading, metric, value, f"{row.value:.2f}", row.metric, _difference(row)


def _difference(row: Beside) -> str:
    if isnan(row.measured.mean):
        return MISSING
    if row.difference is None:
        return NOT_COMPARABLE
    return f"{row.difference:+.1f}".replace("-", "−")


def beside_note(published: Comparison) -> str:
    """Say where published values come from, and which rows have none."""
    return (
        f"Published: {published.source}. The difference is measured minus published, in points; "
        f"“{NOT_COMPARABLE}”: the two are of different metric classes. {' '.join(published.notes)}"
    ).strip()
