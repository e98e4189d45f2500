"""The points of a search of settings, from their records alone: which one is best.

The score of a point is the mean over the probes of their exact match: m = 1/P Σ_p μ_p, where μ_p is
the mean of probe p over its edits (`mmedit.report.scores`), for locality the agreement with the
base model. Every probe counts the same, however many edits have it. Points of equal score are
ranked by reliability, then by seconds per edit. A point with NaN or infinite output is not ranked.

Interval and tests are of one value per edit, u_i = m + N/P Σ_p (x_ip - μ_p) / n_p over the probes p
that edit i has, whose mean is m: the mean of its own scores, if all N edits have all probes. (It is
the linearised m, see Deville, "Variance estimation for complex statistics", Survey Methodology
1999.) Every point is tested against the best one on the same edits; the p-values are corrected
together (`mmedit.report.significance`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from mmedit.cases import Probe
from mmedit.errors import DataError
from mmedit.records.schema import Record
from mmedit.report.columns import COLUMN_SETS, Measure
from mmedit.report.intervals import Summary, summarise
from mmedit.report.scores import AskedEdit, EditScores, asked_edits, clusters_of, scores_of
from mmedit.report.significance import ALPHA, holm, paired_test

UNKNOWN = Summary(nan, nan, nan, 0)


@dataclass(frozen=True)
class PointRecords:
    """The measurement of one point: the records of its method, which are none if it failed."""

    settings: Mapping[str, str]
    """The values of the settings, as they are written."""
    records: Sequence[Record] = ()
    training_seconds: float | None = None
    failure: str = ""
    """The reason why the point could not be measured."""


@dataclass(frozen=True)
class PointScores:
    """One row of the table of a search. Shares are in percent."""

    settings: Mapping[str, str]
    scores: Mapping[Probe, Summary]
    """Exact match of every probe."""
    mean: Summary
    """The mean over the probes; NaN if the point is not ranked."""
    seconds: float
    """Median wall time of an edit, in seconds."""
    training_seconds: float | None
    failure: str
    """The reason why the point is not ranked, or ""."""
    p_to_best: float | None = None
    """Holm-corrected p-value against the best point; None for the best itself."""

    @property
    def is_tied(self) -> bool:
        """Whether the point cannot be told apart from the best one."""
        return self.p_to_best is not None and self.p_to_best >= ALPHA


def ranked(points: Sequence[PointRecords]) -> list[PointScores]:
    """Return the scores of all points, the best first, and those that are not ranked last.

    Raises DataError if points were measured on different edits, or lack a score.
    """
    measured = [_Point(point) for point in points]
    valid = sorted((one for one in measured if not one.failure), key=_Point.rank)
    if any(one.keys != valid[0].keys for one in valid):
        raise DataError(
            "the points of the search were measured on different edits; delete the folders of "
            "those that differ, and run the search again"
        )
    best, others = valid[:1], valid[1:]
    tests = [paired_test(best[0].values, one.values, best[0].clusters).p for one in others]
    p_values = holm(tests) if tests else []
    return [
        *(one.row for one in best),
        *(replace(one.row, p_to_best=p) for one, p in zip(others, p_values, strict=True)),
        *(one.row for one in measured if one.failure),
    ]


def exact_match(probe: Probe) -> Measure:
    """Return the exact match that a table shows of a probe."""
    return next(m for m in COLUMN_SETS["default"].of(probe) if m.name == "EM")


class _Point:
    """The records of one point, and what follows from them."""

    def __init__(self, point: PointRecords) -> None:
        self.point = point
        self.records = sorted(point.records, key=lambda record: record.key)

    @cached_property
    def keys(self) -> list[object]:
        """The tests that were measured: the same for all points that may be compared."""
        return [(record.key, record.content) for record in self.records]

    @cached_property
    def failure(self) -> str:
        bad = sum(not record.is_finite for record in self.records)
        number = f"{bad:,} of {len(self.records):,} edits"
        return self.point.failure or (f"NaN or infinite output on {number}" if bad else "")

    @cached_property
    def scores(self) -> dict[Probe, tuple[Sequence[Record], EditScores]]:
        """The scores of every probe that was asked, with the records that they are of."""
        asked = asked_edits(self.records, Probe)
        found = {probe: scores_of(asked[probe], exact_match(probe)) for probe in Probe}
        return {probe: (asked[probe].records, one) for probe, one in found.items() if one}

    @cached_property
    def mean(self) -> float:
        return fmean(float(one.values.mean()) for _, one in self.scores.values())

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """The value u of every edit."""
        place = {record.key: number for number, record in enumerate(self.records)}
        moved = np.zeros(len(self.records))
        for records, one in self.scores.values():
            rows = [place[record.key] for record in records]
            moved[rows] += (one.values - one.values.mean()) / len(rows)
        return self.mean + moved * len(self.records) / len(self.scores)

    @cached_property
    def clusters(self) -> tuple[int, ...]:
        """Edits of one request or image belong together. Those that share a locality probe alone do
        not: where a few probes serve all edits, everything would be one cluster.
        """
        return clusters_of(tuple(AskedEdit(record.content, ()) for record in self.records))

    def rank(self) -> tuple[float, float, float]:
        """Return what points are sorted by: the mean without its last digits, which depend on the
        order of a sum.
        """
        reliability = self.row.scores.get(Probe.RELIABILITY, UNKNOWN).mean
        return -round(self.mean, 9), -reliability, self.row.seconds

    @cached_property
    def row(self) -> PointScores:
        mean = UNKNOWN
        if not self.failure:
            found = summarise(self.values, self.clusters, bounds=(0, 1))
            mean = Summary(100 * found.mean, 100 * found.low, 100 * found.high, found.n)
        return PointScores(
            settings=self.point.settings,
            scores={probe: one.summary() for probe, (_, one) in self.scores.items()},
            mean=mean,
            seconds=median(r.seconds for r in self.records) if self.records else nan,
            training_seconds=self.point.training_seconds,
            failure=self.failure,
        )
