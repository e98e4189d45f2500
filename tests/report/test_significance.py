"""Paired tests: right on textbook cases, as the libraries compute them, and honest about images."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from mmedit.errors import DataError
from mmedit.report.significance import exact_mcnemar, holm, paired_test, permuted_clusters


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (8, 2), (30, 55), (7, 7)])
def test_mcnemar_is_that_of_statsmodels(first, second):
    expected = mcnemar([[3, first], [second, 4]], exact=True)
    assert exact_mcnemar(first, second) == pytest.approx(expected.pvalue)  # pyright: ignore


def test_holm_is_that_of_statsmodels_in_any_order():
    p_values = np.random.default_rng(0).random(20) ** 3
    assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([]) == []


def test_permuted_signs_are_those_of_scipy():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.4, 1, size=14)
    exact = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=2**14
    )
    assert permuted_clusters(differences, range(14)) == pytest.approx(exact.pvalue, abs=0.01)


def test_on_0_and_1_where_images_occur_once_permutation_and_mcnemar_agree():
    rng = np.random.default_rng(2)
    a, b = (rng.random(200) < 0.6).astype(float), (rng.random(200) < 0.5).astype(float)
    tested = paired_test(a, b, range(200))
    assert tested.test == "McNemar"
    assert permuted_clusters(a - b, range(200)) == pytest.approx(tested.p, abs=0.02)


def test_images_that_repeat_and_scores_between_0_and_1_are_permuted():
    assert paired_test([1, 0, 1], [0, 0, 1], "aab").test == "permutation"
    assert paired_test([0.5, 0, 1], [0, 0, 1], "abc").test == "permutation"


def test_ten_edits_of_one_image_are_one_observation():
    assert permuted_clusters(np.ones(10), ["a"] * 10) == 1.0
    assert permuted_clusters(np.ones(10), range(10)) == pytest.approx(2 / 2**10, abs=2e-3)


def test_equal_methods_have_p_1_and_the_order_of_edits_and_methods_does_not_matter():
    rng = np.random.default_rng(3)
    a, b, images = rng.random(60), rng.random(60), rng.integers(20, size=60)
    assert paired_test(a, a, images.tolist()).p == 1.0
    once, order = paired_test(a, b, images.tolist()), rng.permutation(60)
    assert paired_test(b, a, images.tolist()) == once
    assert paired_test(a[order], b[order], images[order].tolist()) == once


def test_without_a_difference_one_test_in_twenty_is_significant_clustered_or_not():
    """McNemar on edits of shared images would be called significant far too often."""
    rng, found, naive = np.random.default_rng(4), 0, 0
    images = np.repeat(range(50), 6)
    for _ in range(600):
        a, b = ((rng.random(50) < 0.6)[images].astype(float) for _ in range(2))
        found += permuted_clusters(a - b, images.tolist(), permutations=999) < 0.05
        naive += exact_mcnemar(int((a > b).sum()), int((b > a).sum())) < 0.05
    assert 0.02 <= found / 600 <= 0.07
    assert naive / 600 > 0.3


def test_methods_of_different_edits_are_refused():
    with pytest.raises(DataError, match="both methods' values of the same edits"):
        paired_test([1, 0], [1], "ab")
    with pytest.raises(DataError, match="at least one"):
        paired_test([], [], [])


def test_many_continuous_differences_have_the_p_value_of_the_normal_approximation():
    differences = np.random.default_rng(5).normal(0.03, 1, size=2000)
    error = differences.std() / np.sqrt(2000)
    expected = 2 * stats.norm.sf(abs(differences.mean()) / error)
    assert permuted_clusters(differences, range(2000)) == pytest.approx(expected, abs=0.03)
