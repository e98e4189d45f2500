"""Two methods compared on the same edits: the mean paired difference of each column with its
interval and p-value, and the questions on which the two disagree.

Edits are the same if their requests have the same content; in a column they must also be asked the
same there. d_i = second_i - first_i over the edits that both have. The interval is the bootstrap of
mean(d) over clusters (`mmedit.report.intervals`); the test is in `mmedit.report.significance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmedit.cases import Probe
from mmedit.errors import DataError, UnknownNameError
from mmedit.records.schema import Content, ProbeRecord, Record
from mmedit.report.columns import COLUMN_SETS, Measure
from mmedit.report.intervals import Summary, summarise
from mmedit.report.methods import Method
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
    asked_otherwise: int
    """Number of paired edits that are not asked the same: the columns concerned leave them out."""
    failed: tuple[int, int]
    """Number of edits of each method with NaN or infinite output. The columns leave them out."""
    differences: tuple[Difference, ...]
    disagreements: tuple[Disagreement, ...]


def compare(first: Method, second: Method, *, columns: str = "default") -> PairedComparison:
    """Compare two methods edit by edit, paired by content. Raises DataError if they have no edit in
    common.
    """
    if columns not in COLUMN_SETS:
        raise UnknownNameError("set of columns", columns, COLUMN_SETS)
    ours, theirs = _by_request(first), _by_request(second)
    shared = [request for request in ours if request in theirs]
    if not shared:
        raise DataError(
            f"{first.label} and {second.label} have no edit in common: no request has the same "
            "prompt, target and image; compare runs of one dataset with one seed"
        )
    differ = sum(_questions(ours[one]).keys() != _questions(theirs[one]).keys() for one in shared)
    return PairedComparison(
        first,
        second,
        pairs=len(shared),
        unpaired=(len(ours) - len(shared), len(theirs) - len(shared)),
        asked_otherwise=differ,
        failed=(_failed(first), _failed(second)),
        differences=_differences(first, second, columns),
        disagreements=tuple(d for one in shared for d in _disagreements(ours[one], theirs[one])),
    )


def _by_request(method: Method) -> dict[Content, list[Record]]:
    """Group records by request; an edit that was made in several orders has several."""
    found: dict[Content, list[Record]] = {}
    for record in method.records:
        found.setdefault(record.content, []).append(record)
    return found


def _questions(records: Sequence[Record]) -> dict[tuple[Probe, Content], ProbeRecord]:
    """Return what is asked about an edit, by content; the first record's answers come first."""
    found: dict[tuple[Probe, Content], ProbeRecord] = {}
    for record in records:
        for probe in Probe:
            for asked in record.probes.get(probe, ()):
                found.setdefault((probe, asked.content), asked)
    return found


def _failed(method: Method) -> int:
    return sum(not record.is_finite for record in method.records)


def _differences(first: Method, second: Method, columns: str) -> tuple[Difference, ...]:
    found: list[tuple[Probe, Measure, Pairs]] = []
    for probe in Probe:
        for measure in COLUMN_SETS[columns].of(probe):
            a = edit_scores(first.records, probe, measure)
            b = edit_scores(second.records, probe, measure)
            pairs = a and b and pair(a, b)
            if pairs and pairs.edits:
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
        difference=summarise(
            scale * (pairs.second - pairs.first),
            pairs.clusters,
            bounds=(-scale, scale) if measure.percent else None,
        ),
        tested=tested,
        p_holm=p_holm,
        first_only=int((pairs.first > pairs.second).sum()),
        second_only=int((pairs.second > pairs.first).sum()),
    )


def _disagreements(ours: Sequence[Record], theirs: Sequence[Record]) -> Iterator[Disagreement]:
    """Compare the answers to the questions that both are asked and that have a right answer; NaN
    outputs are no answers.
    """
    other = _questions(theirs)
    for (probe, content), a in _questions(ours).items():
        b = other.get((probe, content))
        if b is None or probe.is_unwanted or not (a.is_finite and b.is_finite):
            continue
        if (right := _exact(a)) != _exact(b):
            expected = (a.generated_pre if probe.is_locality else a.target) or a.target
            yield Disagreement(
                case=ours[0].case_id,
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
