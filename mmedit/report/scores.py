"""One value per edit: tables average these values, and paired tests pair them.

An edit that asks several examples for one probe counts with the mean of their scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from mmedit.cases import Probe
from mmedit.errors import DataError
from mmedit.records.schema import Record
from mmedit.report.columns import Measure
from mmedit.report.intervals import Summary, summarise, summarise_share

BASE = "base"
"""The editor's name in the records of the base model."""


def is_base(label: str) -> bool:
    """Return whether a row is the base model's: "base", or of several runs "base (runs/x)"."""
    return label == BASE or label.startswith(f"{BASE} (")


def all_by_editor(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Group records by editor, in the order in which the editors first appear."""
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record.editor, []).append(record)
    return grouped


def by_editor(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Group by editor the records that a table shows: each edit once. For a sequence these are the
    tests at its last checkpoint. An editor without any is left out.
    """
    tests = {editor: _last_tests(found) for editor, found in all_by_editor(records).items()}
    return {editor: found for editor, found in tests.items() if found}


def _last_tests(records: Sequence[Record]) -> list[Record]:
    stops = [record.edits for record in records if record.test == "checkpoint"]
    if not stops:
        return [record for record in records if record.test == "edit"]
    return [r for r in records if r.test == "checkpoint" and r.edits == max(stops)]


@dataclass(frozen=True)
class EditScores:
    """The values of one method in one column, as measured (shares from 0 to 1)."""

    measure: Measure
    cases: tuple[str, ...]
    clusters: tuple[str, ...]
    values: NDArray[np.float64]

    def summary(self) -> Summary:
        """Return mean, interval and n, in percent if the measure is shown so.

        A share has Wilson's interval if examples score 0 or 1, and if all edits score 0 or all
        score 1: a bootstrap would then claim certainty.
        """
        extreme = self.measure.percent and bool(np.isin(self.values.mean(), (0.0, 1.0)))
        wilson = self.measure.all_or_nothing or extreme
        found = (summarise_share if wilson else summarise)(self.values, self.clusters)
        scale = 100 if self.measure.percent else 1
        return Summary(scale * found.mean, scale * found.low, scale * found.high, found.n)


@dataclass(frozen=True)
class Pairs:
    """Two methods' values of the same edits, in the first one's order."""

    cases: tuple[str, ...]
    clusters: tuple[str, ...]
    first: NDArray[np.float64]
    second: NDArray[np.float64]


def edit_scores(records: Sequence[Record], probe: Probe, measure: Measure) -> EditScores | None:
    """Return the values of one editor's records in one column.

    None if no edit has this probe, or if the measure is optional and no edit has the score. Raises
    DataError if some edits lack the score, or all and the measure is not optional.
    """
    asked = [record for record in records if record.probes.get(probe)]
    values = [_case_score(record, probe, measure) for record in asked]
    missing = [record for record, value in zip(asked, values, strict=True) if value is None]
    if len(missing) == len(asked) and (measure.optional or not asked):
        return None
    if missing:
        raise DataError(
            f"{missing[0].editor}, case {missing[0].case_id!r}: {probe.value} of "
            f"{missing[0].probes[probe][0].prompt!r} has no {measure.metric}, as {len(missing)} of "
            f"{len(asked)} edits; measure these edits again"
        )
    return EditScores(
        measure,
        tuple(record.case_id for record in asked),
        tuple(record.cluster for record in asked),
        np.array(values, dtype=np.float64),
    )


def _case_score(record: Record, probe: Probe, measure: Measure) -> float | None:
    values = [measure.of(example) for example in record.probes[probe]]
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def pair(first: EditScores, second: EditScores) -> Pairs:
    """Pair the edits of two methods by case id; a case measured twice counts with its mean."""
    a, b = _by_case(first), _by_case(second)
    shared = tuple(case for case in a if case in b)
    images = dict(zip(first.cases, first.clusters, strict=True))
    return Pairs(
        shared,
        tuple(images[case] for case in shared),
        np.array([a[case] for case in shared], dtype=np.float64),
        np.array([b[case] for case in shared], dtype=np.float64),
    )


def _by_case(scores: EditScores) -> Mapping[str, float]:
    if len(set(scores.cases)) == len(scores.cases):
        return dict(zip(scores.cases, scores.values.tolist(), strict=True))
    found: dict[str, list[float]] = {}
    for case, value in zip(scores.cases, scores.values.tolist(), strict=True):
        found.setdefault(case, []).append(value)
    return {case: fmean(values) for case, values in found.items()}
