"""The method tables of runs, with the notes that belong under them and with published values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas

from mmedit.report.papers import Published
from mmedit.report.published import Comparison, comparisons
from mmedit.report.runs import Measured, Origin
from mmedit.report.sequences import sequence_notes
from mmedit.report.table import method_table


@dataclass(frozen=True)
class RunTable:
    """The table of rows that may be compared."""

    title: str
    """VLM, dataset and mode, and whatever tells this table from the others."""
    origin: Origin
    frame: pandas.DataFrame
    published: Comparison | None = None


def run_table(measured: Measured, *, columns: str = "default") -> pandas.DataFrame:
    """Return the method table of rows that may be compared, with all notes. Raises DataError."""
    return method_table(
        measured.records,
        columns=columns,
        training_seconds=measured.training_seconds or None,
        latencies=measured.latencies,
        notes=[*measured.notes, *sequence_notes(measured.records)],
    )


def run_tables(
    read: Sequence[Measured],
    *,
    columns: str = "default",
    published: Published | None = None,
    model: str | None = None,
    dataset: str | None = None,
) -> list[RunTable]:
    """Return one table for each set of rows that may be compared.

    `published` puts a paper's values beside; `model` and `dataset` are its names for them. Raises
    DataError, also if no row of any table has a published value.
    """
    frames = [run_table(measured, columns=columns) for measured in read]
    beside: Sequence[Comparison | None] = [None] * len(frames)
    if published is not None:
        pairs = [(frame, one.origins) for frame, one in zip(frames, read, strict=True)]
        beside = comparisons(pairs, published, model=model, dataset=dataset)
    return [
        RunTable(one.title, one.origin, frame, found)
        for one, frame, found in zip(read, frames, beside, strict=True)
    ]
