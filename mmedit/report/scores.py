"""One value per edit: tables average these values, and paired tests pair them.

An edit that asks several examples for one probe counts with the mean of their scores. An edit with
NaN or infinite output on one of them has no score in this column: it is left out of the mean, and
counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import nan
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mmedit.cases import Probe
from mmedit.errors import DataError
from mmedit.records.schema import BASE, Content, Key, ProbeRecord, Record
from mmedit.report.intervals import Summary, summarise, summarise_share
from mmedit.report.measures import Combined, Measure, Score


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


class AskedEdit(NamedTuple):
    """Identity of one edit in one column: its request, and what the column asks about it.

    Edits of several runs or methods are the same if this is equal, whatever their cases are called.
    """

    request: Content
    asked: tuple[Content, ...]


@dataclass(frozen=True)
class EditScores:
    """The values of one method in one column, as measured (shares from 0 to 1), all finite."""

    measure: Measure
    edits: tuple[AskedEdit, ...]
    clusters: tuple[int, ...]
    """Cluster of each value: edits of one image or with one question in common have the same."""
    values: NDArray[np.float64]
    failed: tuple[Key, ...] = ()
    """The records whose value is NaN or infinite. They count in no mean."""

    def summary(self) -> Summary:
        """Return mean, interval and n, in percent if the measure is shown so.

        A share has Wilson's interval if examples score 0 or 1.
        """
        if len(self.values) == 0:
            return Summary(nan, nan, nan, 0)
        if self.measure.all_or_nothing:
            found = summarise_share(self.values, self.clusters)
        else:
            bounds = (0, 1) if self.measure.percent else None
            found = summarise(self.values, self.clusters, bounds=bounds)
        scale = 100 if self.measure.percent else 1
        return Summary(scale * found.mean, scale * found.low, scale * found.high, found.n)

    @cached_property
    def by_edit(self) -> Mapping[AskedEdit, float]:
        """The value of every edit; the mean of an edit that was measured more than once."""
        found: dict[AskedEdit, list[float]] = {}
        for edit, value in zip(self.edits, self.values.tolist(), strict=True):
            found.setdefault(edit, []).append(value)
        return {e: values[0] if len(values) == 1 else fmean(values) for e, values in found.items()}


@dataclass(frozen=True)
class Pairs:
    """Two methods' values of the same edits, in the first one's order."""

    edits: tuple[AskedEdit, ...]
    clusters: tuple[int, ...]
    first: NDArray[np.float64]
    second: NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """The edits of one editor that have a probe: all columns of the probe are about them."""

    probe: Probe
    records: tuple[Record, ...]
    edits: tuple[AskedEdit, ...]
    clusters: tuple[int, ...]
    finite: NDArray[np.bool_]
    """Whether all outputs on the probe were finite, by record."""


def asked_edits(records: Sequence[Record], probes: Iterable[Probe]) -> dict[Probe, Asked]:
    """Return the edits of one editor's records that have each of the probes."""
    requests = [record.content for record in records]
    return {probe: _asked(probe, records, requests) for probe in probes}


def _asked(probe: Probe, records: Sequence[Record], requests: Sequence[Content]) -> Asked:
    having = [
        (record, AskedEdit(request, tuple([one.content for one in asked])))
        for record, request in zip(records, requests, strict=True)
        if (asked := record.probes.get(probe))
    ]
    edits = tuple(edit for _, edit in having)
    finite = [all(one.is_finite for one in record.probes[probe]) for record, _ in having]
    return Asked(
        probe,
        tuple(record for record, _ in having),
        edits,
        clusters_of(edits),
        np.array(finite, dtype=np.bool_),
    )


def edit_scores(records: Sequence[Record], probe: Probe, measure: Measure) -> EditScores | None:
    """Return the values of one editor's records in one column, as `scores_of` does."""
    return scores_of(asked_edits(records, [probe])[probe], measure)


def scores_of(asked: Asked, measure: Measure) -> EditScores | None:
    """Return the values of one column of a probe; an edit none of whose examples count
    (`Measure.counts`) has none.

    None if no edit has this probe, or if the measure is optional and no edit has the score. Raises
    DataError if some edits lack the score, or all and the measure is not optional.
    """
    asked = _counting(asked, measure)
    probe, records = asked.probe, asked.records
    values = [_mean_score(record.probes[probe], measure) for record in records]
    missing = [record for record, value in zip(records, values, strict=True) if value is None]
    if len(missing) == len(records) and (measure.optional or not records):
        return None
    if missing:
        raise DataError(
            f"{missing[0].editor}, case {missing[0].case_id!r}: {probe.value} of "
            f"{missing[0].probes[probe][0].prompt!r} has no {measure.metric}, as {len(missing)} of "
            f"{len(records)} edits; measure these edits again"
        )
    return _finite_scores(asked, measure, values)


def combined_scores(asked: Mapping[Probe, Asked], combined: Combined) -> EditScores | None:
    """Return the values of a column of several probes, of the edits that have all of them.

    A value is the mean over the probes; the score of a probe is the mean over its examples. None
    if no edit has all probes with their scores.
    """
    probes = [probe for probe, _ in combined.parts]
    records, edits, values = list[Record](), list[AskedEdit](), list[float]()
    for record in asked[probes[0]].records:
        found = [_mean(record.probes.get(probe, ()), score) for probe, score in combined.parts]
        known = [score for score in found if score is not None]
        if len(known) == len(found):
            examples = [example for probe in probes for example in record.probes[probe]]
            records.append(record)
            edits.append(AskedEdit(record.content, tuple(one.content for one in examples)))
            values.append(fmean(known) if all(one.is_finite for one in examples) else nan)
    if not records:
        return None
    finite = np.isfinite(values)
    together = Asked(probes[0], tuple(records), tuple(edits), clusters_of(tuple(edits)), finite)
    return _finite_scores(together, combined.measure, values)


def _counting(asked: Asked, measure: Measure) -> Asked:
    """Return the edits of which at least one example counts."""
    if measure.among is None:
        return asked
    rows = [
        row
        for row, record in enumerate(asked.records)
        if any(map(measure.counts, record.probes[asked.probe]))
    ]
    edits = tuple(asked.edits[row] for row in rows)
    records = tuple(asked.records[row] for row in rows)
    return Asked(asked.probe, records, edits, clusters_of(edits), asked.finite[rows])


def _finite_scores(asked: Asked, measure: Measure, values: Sequence[float | None]) -> EditScores:
    """Return the values of edits with finite output, and the keys of the others."""
    array = np.array(values, dtype=np.float64)
    finite = np.isfinite(array) & asked.finite
    if finite.all():
        return EditScores(measure, asked.edits, asked.clusters, array)
    edits = tuple(edit for edit, known in zip(asked.edits, finite, strict=True) if known)
    records = zip(asked.records, finite, strict=True)
    failed = tuple(record.key for record, known in records if not known)
    return EditScores(measure, edits, clusters_of(edits), array[finite], failed)


def _mean_score(examples: Sequence[ProbeRecord], measure: Measure) -> float | None:
    """Return the mean score of the examples that count, at least one; None if one of them was not
    measured.
    """
    counted = examples if len(examples) == 1 else [e for e in examples if measure.counts(e)]
    return _mean(counted, measure.of)


def _mean(examples: Sequence[ProbeRecord], score: Score) -> float | None:
    values = [score(example) for example in examples]
    if len(values) == 1:
        return values[0]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


@lru_cache(maxsize=len(Probe))  # the methods of a table ask the same, one after another
def clusters_of(edits: tuple[AskedEdit, ...]) -> tuple[int, ...]:
    """Number the clusters of edits: connected components, where edits are neighbours if they share
    the request's image (its content, without an image) or a question. The time is near linear.
    """
    nodes: dict[Hashable, int] = {}
    links = [
        (row, nodes.setdefault(node, len(edits) + len(nodes)))
        for row, edit in enumerate(edits)
        for node in (edit.request.image or edit.request, *edit.asked)
    ]
    if not links:
        return ()
    ends, size = np.array(links, dtype=np.int64).T, len(edits) + len(nodes)
    graph = coo_array((np.ones(len(links)), (ends[0], ends[1])), shape=(size, size))
    return tuple(connected_components(graph, directed=False)[1][: len(edits)].tolist())


def failures(failed: int, edits: int) -> str:
    """Write how many edits are left out, as their output was NaN or infinite.

    >>> failures(3, 50)
    'NaN or infinite output on 3 of 50 edits, left out of the means'
    """
    return f"NaN or infinite output on {failed:,} of {edits:,} edits, left out of the means"


def pair(first: EditScores, second: EditScores) -> Pairs:
    """Pair two methods' values by what was edited and asked. An edit measured twice counts with its
    mean.
    """
    a, b = first.by_edit, second.by_edit
    shared = tuple(edit for edit in a if edit in b)
    return Pairs(
        shared,
        first.clusters if shared == first.edits else clusters_of(shared),
        np.array([a[edit] for edit in shared], dtype=np.float64),
        np.array([b[edit] for edit in shared], dtype=np.float64),
    )
