"""Which point of a search is best, from records alone."""

from __future__ import annotations

from math import isnan

import pytest
from made_records import LOC, PORT, REL, asked, kept, not_finite, record

from mmedit.errors import DataError
from mmedit.report.intervals import summarise
from mmedit.report.points import PointRecords, ranked
from mmedit.report.render.points import as_csv, markdown


def point(name, right, local=None, *, seconds=1.0, port=()):
    """A point whose edits have these exact matches; the first ones have portability too."""
    records = []
    for i, (a, b) in enumerate(zip(right, local or [1.0] * len(right), strict=True)):
        image = f"{i}.png"
        probes = {REL: (asked(a, a, image=image),), LOC: (kept(b, b, image=f"other {image}"),)}
        if i < len(port):
            probes[PORT] = (asked(port[i], port[i], image=image, prompt="whence?"),)
        records.append(record(str(i), probes, seconds=seconds))
    return PointRecords({"lr": name}, records)


def names(points):
    return [one.settings["lr"] for one in ranked(points)]


def test_the_best_point_has_the_highest_mean_over_the_probes():
    points = [point("a", [1, 1, 0, 0], [1, 1, 1, 1]), point("b", [1, 1, 1, 1], [1, 1, 0, 1])]
    best, other = ranked(points)
    assert best.settings == {"lr": "b"}
    assert best.mean.mean == pytest.approx((100 + 75) / 2)
    assert other.mean.mean == pytest.approx((50 + 100) / 2)


def test_every_probe_counts_the_same_however_many_edits_have_it():
    [found] = ranked([point("a", [1, 1, 1, 0], [1, 1, 1, 1], port=[0])])
    assert found.mean.mean == pytest.approx((75 + 100 + 0) / 3)
    assert {probe: one.n for probe, one in found.scores.items()} == {REL: 4, LOC: 4, PORT: 1}


def test_the_interval_is_that_of_the_edits_own_means():
    right, local = [1, 0, 1, 1, 0, 1], [1, 1, 0, 1, 0, 1]
    [found] = ranked([point("a", right, local)])
    own = [50.0 * (a + b) for a, b in zip(right, local, strict=True)]
    expected = summarise(own, range(6))
    assert (found.mean.low, found.mean.high) == pytest.approx((expected.low, expected.high))


def test_edits_that_share_a_locality_probe_alone_are_counted_one_by_one():
    """In a small dataset all do, and one cluster of all edits could never tell two points apart."""

    def sharing(name, right):
        records = [
            record(
                str(i),
                {REL: (asked(a, a, image=f"{i}.png"),), LOC: (kept(1, 1, image="the same.png"),)},
            )
            for i, a in enumerate(right)
        ]
        return PointRecords({"lr": name}, records)

    best, other = ranked([sharing("a", [1] * 20), sharing("b", [0] * 20)])
    assert other.p_to_best is not None
    assert other.p_to_best < 0.001
    assert not other.is_tied
    assert best.mean.low > other.mean.high


def test_equal_means_are_ordered_by_reliability_and_then_by_cost():
    slow, fast = point("slow", [1, 1], [0, 0], seconds=2), point("fast", [1, 1], [0, 0])
    assert names([point("timid", [0, 0], [1, 1]), slow, fast]) == ["fast", "slow", "timid"]


def test_a_point_that_cannot_be_told_apart_from_the_best_is_marked():
    near, far = [1] * 29 + [0], [0] * 30
    found = {
        one.settings["lr"]: one
        for one in ranked([point("a", [1] * 30), point("b", near), point("c", far)])
    }
    assert found["a"].p_to_best is None
    assert found["b"].is_tied
    assert not found["c"].is_tied
    written = markdown("Settings", list(found.values()), ["a note"])
    assert "**best**" in written
    assert written.count("†") == 1


def test_a_point_with_nan_output_is_not_ranked_however_good_the_rest_is():
    broken = point("broken", [1, 1, 1])
    first = broken.records[0]
    bad = {**first.probes, REL: tuple(not_finite(one) for one in first.probes[REL])}
    records = [first.model_copy(update={"probes": bad}), *broken.records[1:]]
    points = [PointRecords(broken.settings, records), point("poor", [0, 0, 0])]
    poor, last = ranked(points)
    assert poor.settings["lr"] == "poor"
    assert last.failure == "NaN or infinite output on 1 of 3 edits"
    assert isnan(last.mean.mean)
    assert "failed" in markdown("Settings", [poor, last], [])


def test_a_point_that_was_not_measured_comes_last_with_its_reason():
    failed = PointRecords({"lr": "9"}, failure="training diverged: step 3")
    found = ranked([failed, point("a", [1, 0])])
    assert [one.settings["lr"] for one in found] == ["a", "9"]
    assert "training diverged: step 3" in as_csv(found)
    assert names([failed]) == ["9"]


def test_points_of_different_edits_are_refused():
    with pytest.raises(DataError, match="measured on different edits"):
        ranked([point("a", [1, 1]), point("b", [1, 1, 1])])
