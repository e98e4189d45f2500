"""Tests whether two methods differ on the same edits, corrected for many comparisons.

Exact McNemar: of the b + c edits that only one method got right, b are the first method's; under H0
b is Binomial(b + c, 1/2) (McNemar, Psychometrika 1947). The test assumes independent edits, so it
is used if every cluster is one edit (edits that share an image or a question form a cluster).
Otherwise, and for scores that are not 0 or 1, the signs of clusters are flipped: T = |Σ_c s_c D_c|
with s_c = ±1 and D_c the summed difference of cluster c; p = (1 + #{T* ≥ T}) / (1 + R) (Phipson and
Smyth, Stat. Appl. Genet. Mol. Biol. 2010). On scores of 0 and 1 with clusters of one edit, both are
the same test. Several p-values are corrected by Holm's method
(Scand. J. Statistics 1979).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mmedit.errors import DataError

ALPHA = 0.05
PERMUTATIONS = 9_999
_SIGNS_AT_ONCE = 250_000  # fits into the processor's cache

TestName = Literal["McNemar", "permutation"]


@dataclass(frozen=True)
class PairedTest:
    """A two-sided p-value and the test that gave it."""

    p: float
    test: TestName


def paired_test(first: ArrayLike, second: ArrayLike, clusters: Sequence[Hashable]) -> PairedTest:
    """Test with McNemar for scores of 0 and 1 if every cluster is one edit, else by permutation.

    >>> paired_test([1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0], "abcdefg")
    PairedTest(p=0.03125, test='McNemar')
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) != len(clusters) or len(a) == 0:
        raise DataError(
            f"values of shapes {a.shape} and {b.shape} with {len(clusters)} clusters; "
            "a paired test needs both methods' values of the same edits, and at least one"
        )
    all_or_nothing = np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()
    if all_or_nothing and len(set(clusters)) == len(clusters):
        return PairedTest(exact_mcnemar(int((a > b).sum()), int((b > a).sum())), "McNemar")
    return PairedTest(permuted_clusters(a - b, clusters), "permutation")


def exact_mcnemar(first_only: int, second_only: int) -> float:
    """Return the two-sided p-value from the edits that only one of two methods got right.

    >>> exact_mcnemar(8, 2)
    0.109375
    """
    discordant = first_only + second_only
    return float(stats.binomtest(first_only, discordant).pvalue) if discordant else 1.0


def permuted_clusters(
    differences: NDArray[np.float64],
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> float:
    """Return the two-sided p-value of a mean difference, flipping the signs of whole clusters."""
    codes: dict[Hashable, int] = {}
    code = np.array([codes.setdefault(cluster, len(codes)) for cluster in clusters])
    sums = np.bincount(code, weights=differences)
    rounded = np.abs(sums).round(12)  # equal differences, whatever the order they were added in
    kinds, counts = np.unique(rounded[rounded > 0], return_counts=True)
    if len(kinds) == 0:
        return 1.0
    flipped = _flipped_sums(kinds, counts, np.random.default_rng(seed), permutations)
    observed = abs(float(sums.sum())) - 1e-9 * float(kinds @ counts)
    return float(1 + (np.abs(flipped) >= observed).sum()) / (1 + permutations)


def _flipped_sums(
    kinds: NDArray[np.float64],
    counts: NDArray[np.int64],
    rng: np.random.Generator,
    permutations: int,
) -> NDArray[np.float64]:
    """Draw the sum of all clusters with random signs, `permutations` times.

    Clusters with the same |difference| are exchangeable, and scores have few different differences:
    one binomial draw replaces all signs of one kind, a hundred times faster than
    `scipy.stats.permutation_test`.
    """
    if len(kinds) * 8 < counts.sum():
        plus = rng.binomial(counts, 0.5, size=(permutations, len(kinds)))
        return (2 * plus - counts) @ kinds
    each = np.repeat(kinds, counts)
    rows = max(1, _SIGNS_AT_ONCE // len(each))
    sizes = [min(rows, permutations - start) for start in range(0, permutations, rows)]
    signs = (rng.integers(2, size=(n, len(each)), dtype=np.int8).astype(np.float64) for n in sizes)
    return np.concatenate([2 * (one @ each) for one in signs]) - each.sum()


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number and return them in the same order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    # statsmodels' multipletests collects garbage at every call: a quarter of a second per column
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(steps, 1)[np.argsort(order)].tolist()
