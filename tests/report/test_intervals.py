import math

import numpy as np
import pytest
from scipy import stats

from mmedit.errors import DataError
from mmedit.report.intervals import (
    clustered_bootstrap_interval,
    clustered_wilson_interval,
    summarise,
)


def width(interval):
    return interval[1] - interval[0]


def test_the_summary_has_the_plain_mean_and_the_number_of_values():
    summary = summarise([1.0, 0.0, 1.0, 0.5], ["a", "a", "b", "c"])
    assert (summary.mean, summary.n) == (0.625, 4)
    assert summary.low <= summary.mean <= summary.high
    assert summary.half_width == pytest.approx((summary.high - summary.low) / 2)
    assert float(summary) == 0.625


def test_two_clusters_give_the_interval_of_their_three_possible_draws():
    low, high = clustered_bootstrap_interval([0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"])
    assert (low, high) == (0.0, 1.0)  # aa: 0, ab: 1/4, bb: 1


def test_the_interval_matches_the_normal_approximation_for_independent_edits():
    rng = np.random.default_rng(1)
    values = rng.normal(5.0, 2.0, size=4000)
    interval = clustered_bootstrap_interval(values, range(4000))
    error = values.std() / math.sqrt(4000)
    assert interval == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
    )


def trial(rng, share, images, edits, correlation, tokens):
    """(values, clusters) of one simulated run: a right answer's chance varies from image to image,
    with intra-image correlation as given; `edits` per image, or at random where it is 0.
    """
    sizes = np.full(images, edits) if edits else rng.geometric(0.6, size=images)
    clusters = np.repeat(np.arange(images), sizes)
    chance = np.full(images, share)
    if correlation:
        strength = (1 - correlation) / correlation
        chance = rng.beta(share * strength, (1 - share) * strength, size=images)
    right = rng.random((len(clusters), tokens)) < chance[clusters, None]
    return right.mean(axis=1), clusters.tolist()


EXACT_MATCH, TOKEN_ACCURACY = (clustered_wilson_interval, 1), (clustered_bootstrap_interval, 3)


@pytest.mark.parametrize(
    ("metric", "share", "images", "edits", "correlation"),
    [
        (EXACT_MATCH, 0.7, 200, 1, 0.0),
        (EXACT_MATCH, 0.95, 200, 1, 0.0),
        (EXACT_MATCH, 0.98, 300, 1, 0.0),
        (EXACT_MATCH, 0.7, 100, 3, 0.4),
        (EXACT_MATCH, 0.9, 100, 3, 0.4),
        (EXACT_MATCH, 0.8, 200, 0, 0.3),
        (TOKEN_ACCURACY, 0.7, 200, 1, 0.0),
        (TOKEN_ACCURACY, 0.7, 100, 3, 0.4),
        (TOKEN_ACCURACY, 0.95, 100, 3, 0.4),
        (TOKEN_ACCURACY, 0.8, 150, 0, 0.3),
        (TOKEN_ACCURACY, 0.8, 30, 4, 0.3),
    ],
)
def test_the_95_percent_interval_holds_the_truth_93_to_97_percent_of_the_time(
    metric, share, images, edits, correlation
):
    interval, tokens = metric
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        values, clusters = trial(rng, share, images, edits, correlation, tokens)
        low, high = interval(values, clusters, **({"resamples": 500} if tokens > 1 else {}))
        covered += low <= share <= high
    assert 0.93 <= covered / 1000 <= 0.97


def test_an_interval_that_takes_edits_of_one_image_for_independent_misses_the_truth():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(500):
        values, _ = trial(rng, 0.7, 60, 10, 0.5, 1)
        low, high = clustered_wilson_interval(values, range(len(values)))
        covered += low <= 0.7 <= high
    assert covered / 500 < 0.75


def test_where_every_image_occurs_once_the_share_has_wilsons_interval():
    values = [1.0] * 27 + [0.0] * 3
    wilson = stats.binomtest(27, 30).proportion_ci(method="wilson")
    assert clustered_wilson_interval(values, range(30)) == pytest.approx((wilson.low, wilson.high))


def test_edits_that_always_agree_with_their_image_count_once_per_image():
    """Each image ten times: the interval of 30 edits, a little wider by Student's quantile."""
    values = [1.0] * 27 + [0.0] * 3
    once = clustered_wilson_interval(values, range(30))
    tenfold = clustered_wilson_interval(np.repeat(values, 10), np.repeat(range(30), 10).tolist())
    assert width(once) < width(tenfold) < 1.1 * width(once)


def test_all_right_counts_as_many_edits_as_there_are_images():
    low, high = clustered_wilson_interval([1.0] * 40, [i // 2 for i in range(40)])
    assert (low, high) == (pytest.approx(20 / (20 + 1.95996**2), rel=1e-4), 1.0)


def test_shares_outside_0_to_1_are_refused():
    with pytest.raises(DataError, match="values between 0 and 100; a share lies between 0 and 1"):
        clustered_wilson_interval([0.0, 100.0], "ab")


def test_edits_that_share_an_image_widen_the_interval():
    rng = np.random.default_rng(3)
    values = np.repeat((rng.random(100) < 0.7).astype(float), 10)
    by_image = clustered_bootstrap_interval(values, np.repeat(range(100), 10).tolist())
    naive = clustered_bootstrap_interval(values, range(1000))
    assert width(by_image) == pytest.approx(math.sqrt(10) * width(naive), rel=0.15)


def test_larger_clusters_weigh_more():
    low, high = clustered_bootstrap_interval([1.0] * 98 + [0.0, 0.0], ["big"] * 98 + ["x", "y"])
    assert high == 1.0
    assert low == 0.0
    values = [1.0] * 90 + [0.0] * 10
    equal = clustered_bootstrap_interval(values, [i // 10 for i in range(100)])
    assert 0.4 < equal[0] < 0.8


def test_the_order_of_the_records_does_not_move_the_interval():
    rng = np.random.default_rng(4)
    values, clusters = rng.random(500), rng.integers(100, size=500)
    shuffled = rng.permutation(500)
    assert clustered_bootstrap_interval(values, clusters.tolist()) == clustered_bootstrap_interval(
        values[shuffled], clusters[shuffled].tolist()
    )


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    rng = np.random.default_rng(5)
    values = rng.random(50)
    once = clustered_bootstrap_interval(values, range(50), seed=1)
    assert once == clustered_bootstrap_interval(values, range(50), seed=1)
    assert once != clustered_bootstrap_interval(values, range(50), seed=2)


def test_a_higher_level_gives_a_wider_interval():
    values = np.random.default_rng(6).random(200)
    narrow = clustered_bootstrap_interval(values, range(200), level=0.5)
    wide = clustered_bootstrap_interval(values, range(200), level=0.99)
    assert width(wide) > 3 * width(narrow)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999, 1.0])
def test_values_that_are_all_equal_have_the_interval_of_shares_of_as_many_clusters(share):
    """Six scores of 0.5 are not certainty: [50, 50] would claim that the next one is 0.5, too."""
    found = summarise([share] * 12, [i // 2 for i in range(12)], bounds=(0, 1))
    z2 = 1.95996**2 / 6  # Wilson's interval holds all m with (share - m)² <= z² m (1 - m) / 6
    for end in (found.low, found.high):
        assert (share - end) ** 2 == pytest.approx(z2 * end * (1 - end), abs=1e-5)
    assert found.low <= share <= found.high
    assert found.high - found.low > 0.3


def test_clusters_that_do_not_differ_have_that_interval_though_their_edits_do():
    alike = summarise([1.0, 0.0] * 6, [i // 2 for i in range(12)], bounds=(0, 1))
    equal = summarise([0.5] * 12, [i // 2 for i in range(12)], bounds=(0, 1))
    assert (alike.low, alike.high) == pytest.approx((equal.low, equal.high))


def test_bounds_scale_the_interval_and_without_bounds_it_is_unknown():
    share = summarise([0.7] * 9, range(9), bounds=(0, 1))
    percent = summarise([70.0] * 9, range(9), bounds=(0, 100))
    assert (percent.low, percent.high) == pytest.approx((100 * share.low, 100 * share.high))
    unknown = summarise([0.7] * 9, range(9))
    assert math.isnan(unknown.low)
    assert math.isnan(unknown.high)
    assert math.isnan(summarise([0.7] * 9, ["a"] * 9, bounds=(0, 1)).low)


@pytest.mark.parametrize("kind", ["two values", "spread", "almost constant"])
def test_the_interval_of_equal_values_is_at_least_as_wide_as_bounded_values_need(kind):
    """Around simulated means of 25 bounded values, whatever their distribution."""
    rng = np.random.default_rng(8)
    draw = {
        "two values": lambda: (rng.random(25) < 0.6).astype(float),
        "spread": lambda: rng.beta(1.2, 0.8, size=25),
        "almost constant": lambda: rng.normal(0.6, 1e-3, size=25),
    }[kind]
    covered = 0
    for _ in range(500):
        bounded = summarise([draw().mean()] * 25, range(25), bounds=(0, 1))
        covered += bounded.low <= 0.6 <= bounded.high
    assert covered / 500 >= 0.9  # of two values, Wilson's own for a binomial of 25


def test_a_single_cluster_tells_no_interval():
    summary = summarise([0.0, 1.0], ["a", "a"])
    assert summary.mean == 0.5
    assert math.isnan(summary.low)
    assert math.isnan(summary.half_width)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_refused_with_their_position(bad):
    with pytest.raises(DataError, match="1 of 3 values are NaN or infinite, first at position 2"):
        summarise([1.0, 0.0, bad], "abc")


def test_no_values_and_lengths_that_differ_are_refused():
    with pytest.raises(DataError, match="no values to average"):
        summarise([], [])
    with pytest.raises(DataError, match="one value and one cluster per edit"):
        summarise([1.0, 0.0], ["a"])


@pytest.mark.parametrize("continuous", [False, True], ids=["accuracy", "continuous"])
def test_ten_thousand_values_have_the_interval_of_the_normal_approximation(continuous):
    values = np.random.default_rng(7).random(10_000)
    values = values if continuous else values.round()
    error = 1.96 * values.std() / math.sqrt(10_000)
    interval = clustered_bootstrap_interval(values, range(10_000))
    assert interval == pytest.approx(
        (values.mean() - error, values.mean() + error), abs=0.15 * error
    )
