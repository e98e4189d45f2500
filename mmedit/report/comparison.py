"""Two methods compared on the same edits: the mean paired difference of each column with its
interval and p-value, and the questions on which the two disagree.

d_i = second_i - first_i over the edits that both have. The interval is the bootstrap of mean(d)
over images (`mmedit.report.intervals`); the test is in `mmedit.report.significance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mmedit.cases import Probe
from mmedit.errors import DataError, UnknownNameError
from mmedit.records.schema import ProbeRecord, Record
from mmedit.report.columns import COLUMN_SETS, Measure
from mmedit.report.intervals import Summary, summarise
from mmedit.report.runs import Method
from mmedit.report.scores import Pairs, edit_scores, pair
from mmedit.report.significance import PairedTest, holm, paired_test


@dataclass(frozen=True)
class Difference:
    """One column: both means, and second minus first with its interval, shares in percent.

    `first_only` and `second_only` count the edits on which one scores more.
    """

    heading: str
    measure: Measure
    first: float
    second: float
    difference: Summary
    tested: PairedTest
    p_holm: float
    """The p-value, corrected for the number of columns."""
    first_only: int
    second_only: int


@dataclass(frozen=True)
class Disagreement:
    """One question that exactly one of the two methods answered as expected."""

    case: str
    heading: str
    prompt: str
    expected: str
    first: str
    second: str
    first_is_right: bool


@dataclass(frozen=True)
class PairedComparison:
    """Two methods, compared on the edits that both have."""

    first: Method
    second: Method
    pairs: int
    unpaired: tuple[int, int]
    """Number of edits that only the first has, and that only the second has."""
    differences: tuple[Difference, ...]
    disagreements: tuple[Disagreement, ...]


def compare(first: Method, second: Method, *, columns: str = "default") -> PairedComparison:
    """Compare two methods edit by edit. Raises DataError if they have no edit in common, or if one
    case id stands for two different edits.
    """
    if columns not in COLUMN_SETS:
        raise UnknownNameError("set of columns", columns, COLUMN_SETS)
    ours, theirs = _by_case(first), _by_case(second)
    shared = [case for case in ours if case in theirs]
    if not shared:
        raise DataError(
            f"{first.label} and {second.label} have no edit in common; compare runs of one dataset"
        )
    for case in shared:
        _require_same_edit(case, ours[case], theirs[case])
    return PairedComparison(
        first,
        second,
        len(shared),
        (len(ours) - len(shared), len(theirs) - len(shared)),
        _differences(first, second, columns),
        tuple(d for case in shared for d in _disagreements(ours[case], theirs[case])),
    )


def _by_case(method: Method) -> Mapping[str, Record]:
    return {record.case_id: record for record in method.records}


def _require_same_edit(case: str, ours: Record, theirs: Record) -> None:
    a, b = (
        [(one.prompt, one.target) for one in record.probes.get(Probe.RELIABILITY, ())]
        for record in (ours, theirs)
    )
    if a != b:
        raise DataError(
            f"case {case!r} is a different edit in each run: {a} and {b}; compare runs of one "
            "dataset with one seed"
        )


def _differences(first: Method, second: Method, columns: str) -> tuple[Difference, ...]:
    found: list[tuple[Probe, Measure, Pairs]] = []
    for probe in Probe:
        for measure in COLUMN_SETS[columns].of(probe):
            a = edit_scores(first.records, probe, measure)
            b = edit_scores(second.records, probe, measure)
            pairs = a and b and pair(a, b)
            if pairs and pairs.cases:
                found.append((probe, measure, pairs))
    tests = [paired_test(pairs.first, pairs.second, pairs.clusters) for _, _, pairs in found]
    corrected = holm([test.p for test in tests])
    return tuple(
        _difference(*column, test, p)
        for column, test, p in zip(found, tests, corrected, strict=True)
    )


def _difference(
    probe: Probe, measure: Measure, pairs: Pairs, tested: PairedTest, p_holm: float
) -> Difference:
    scale = 100 if measure.percent else 1
    return Difference(
        heading=probe.heading,
        measure=measure,
        first=scale * float(pairs.first.mean()),
        second=scale * float(pairs.second.mean()),
        difference=summarise(scale * (pairs.second - pairs.first), pairs.clusters),
        tested=tested,
        p_holm=p_holm,
        first_only=int((pairs.first > pairs.second).sum()),
        second_only=int((pairs.second > pairs.first).sum()),
    )


def _disagreements(ours: Record, theirs: Record) -> Iterator[Disagreement]:
    for probe in Probe:
        asked = zip(ours.probes.get(probe, ()), theirs.probes.get(probe, ()), strict=False)
        for a, b in asked:
            if (right := _exact(a)) != _exact(b):
                expected = (a.generated_pre if probe.is_locality else a.target) or a.target
                yield Disagreement(
                    case=ours.case_id,
                    heading=probe.heading,
                    prompt=a.prompt,
                    expected=expected,
                    first=_said(a),
                    second=_said(b),
                    first_is_right=right == 1,
                )


def _exact(asked: ProbeRecord) -> float:
    return asked.locality.exact_answer if asked.locality else asked.post.exact_match


def _said(asked: ProbeRecord) -> str:
    if asked.generated_post is None:
        return f"(not generated; EM {_exact(asked):g})"
    return asked.generated_post
