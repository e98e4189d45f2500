"""Confidence intervals of a mean, for edits that succeed and fail together: those that share an
image or a question, which form a cluster.

Bootstrap over whole clusters: θ* = Σ_c w_c S_c / Σ_c w_c n_c with w ~ Multinomial(C, 1/C), where
S_c and n_c are the sum and the size of cluster c (Field and Welsh, "Bootstrapping clustered data",
JRSS B 2007). The ends are quantiles of θ*, at Φ(a + z / (1 - a z)) with z = a ± t √(C / (C - 1)):
bias-corrected and accelerated, for means near 100 % (Efron, "Better bootstrap confidence
intervals", JASA 1987; of a mean, bias and acceleration a are the same), with Student's quantile t
of C - 1 degrees of freedom, for few clusters (Hesterberg, "What teachers should know about the
bootstrap", The American Statistician 2015).

Wilson for shares of right answers, on the effective number of edits n* = n / deff, with the design
effect deff = Var_clustered(p) / (p (1 - p) / (n - 1)) and Var_clustered(p) = C / (C - 1) · Σ_c (S_c
- p n_c)² / n² (Korn and Graubard, "Confidence intervals for proportions with small expected number
of positive counts estimated from survey data", Survey Methodology 1998; Franco et al., J. Survey
Statistics and Methodology 2019). If every cluster is one edit, this is Wilson's interval.

If no cluster differs from the mean, a resample shows no spread, and that is not certainty. No
distribution on 0 to 1 with mean μ has a larger variance than μ (1 - μ) (Bhatia and Davis, "A better
bound on the variance", American Mathematical Monthly 2000), so the interval of bounded values holds
every μ with (p - μ)² ≤ z² μ (1 - μ) / C: Wilson's interval of C clusters. Values without bounds
have no such interval: it is unknown (NaN).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from mmedit.errors import DataError

RESAMPLES = 2000
LEVEL = 0.95
_DRAWS_AT_ONCE = 1_000_000  # bounds the memory, not the result


@dataclass(frozen=True)
class Summary:
    """A mean of `n` values with its interval.

    `low` and `high` are NaN if the interval is unknown: a single cluster says nothing about the
    spread, nor do values without bounds that are all equal. `mean` is NaN for no values.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Half of the interval: the number after ± in a table."""
        return (self.high - self.low) / 2

    def __float__(self) -> float:
        return self.mean


def summarise(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> Summary:
    """Return mean, 95 % clustered bootstrap interval and n of one value per edit.

    `bounds` are the smallest and the largest value that is possible, None if there are none. They
    give the interval if no cluster differs from the mean; without them it is then unknown.

    >>> summarise([1.0, 0.0, 1.0, 1.0], ["a", "a", "b", "c"])
    Summary(mean=0.75, low=0.5, high=1.0, n=4)
    >>> summarise([0.5, 0.5, 0.5, 0.5], ["a", "b", "c", "d"], bounds=(0, 1))
    Summary(mean=0.5, low=0.150038..., high=0.84996..., n=4)
    """
    array = _checked(values, clusters)
    kinds, counts = _kinds_of_cluster(array, clusters)
    mean = float(array.mean())
    if _are_alike(kinds, mean):
        low, high = _interval_of_bounded(mean, int(counts.sum()), bounds)
    else:
        low, high = clustered_bootstrap_interval(array, clusters, seed=seed)
    return Summary(mean, low, high, len(array))


def _are_alike(kinds: NDArray[np.float64], mean: float) -> bool:
    """Return whether no cluster differs from the mean, but for rounding."""
    totals, sizes = kinds.T
    return float(np.abs(totals - mean * sizes).max()) <= 1e-9 * float(np.abs(totals).max())


def _interval_of_bounded(
    mean: float, clusters: int, bounds: tuple[float, float] | None
) -> tuple[float, float]:
    """Return the interval of values between bounds if only their mean is known."""
    if bounds is None or clusters == 1:
        return float("nan"), float("nan")
    least, most = bounds
    low, high = _wilson((mean - least) / (most - least), clusters, LEVEL)
    return least + low * (most - least), least + high * (most - least)


def clustered_bootstrap_interval(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Return the bootstrap interval of the mean, drawing whole clusters with replacement.

    `clusters[i]` names the cluster of `values[i]`; their order does not matter. A single cluster
    gives (NaN, NaN). Raises DataError for no values, NaN or infinity.
    """
    array = _checked(values, clusters)
    kinds, counts = _kinds_of_cluster(array, clusters)
    if counts.sum() == 1:
        return float("nan"), float("nan")
    means = _resampled_means(kinds, counts, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, _quantiles(kinds, counts, level))
    return float(low), float(high)


def _quantiles(
    kinds: NDArray[np.float64], counts: NDArray[np.int64], level: float
) -> NDArray[np.float64]:
    """Return the quantiles of the resampled means at which the interval ends.

    The acceleration a comes from the means without one cluster.
    """
    clusters, (totals, sizes) = int(counts.sum()), kinds.T
    left = (counts @ totals - totals) / (counts @ sizes - sizes)
    moved = (counts @ left) / clusters - left
    spread = float(counts @ moved**2)
    acceleration = float(counts @ moved**3) / (6 * spread**1.5) if spread > 1e-20 else 0.0
    reach = stats.t.ppf((1 + level) / 2, clusters - 1) * np.sqrt(clusters / (clusters - 1))
    z = acceleration + np.array([-reach, reach])
    return stats.norm.cdf(acceleration + z / np.maximum(1 - acceleration * z, 1e-9))


def summarise_share(values: ArrayLike, clusters: Sequence[Hashable]) -> Summary:
    """Return mean, 95 % Wilson interval and n of values between 0 and 1, one per edit.

    >>> summarise_share([1.0, 1.0, 1.0, 1.0], ["a", "b", "c", "d"])
    Summary(mean=1.0, low=0.510109..., high=1.0, n=4)
    """
    array = _checked(values, clusters)
    low, high = clustered_wilson_interval(array, clusters)
    return Summary(float(array.mean()), low, high, len(array))


def clustered_wilson_interval(
    values: ArrayLike, clusters: Sequence[Hashable], *, level: float = LEVEL
) -> tuple[float, float]:
    """Return the Wilson interval of a share on the effective number of edits.

    A single cluster gives (NaN, NaN). Raises DataError for no values, NaN, infinity, or a value
    outside 0 to 1.
    """
    array = _checked(values, clusters)
    if array.min() < 0 or array.max() > 1:
        raise DataError(
            f"values between {array.min():g} and {array.max():g}; a share lies between 0 and 1"
        )
    kinds, counts = _kinds_of_cluster(array, clusters)
    if counts.sum() == 1:
        return float("nan"), float("nan")
    return _wilson(float(array.mean()), _effective_size(kinds, counts, level), level)


def _wilson(share: float, size: float, level: float) -> tuple[float, float]:
    interval = proportion_confint(share * size, size, alpha=1 - level, method="wilson")
    low, high = np.asarray(interval, dtype=np.float64).tolist()
    return min(low, share), max(high, share)  # against rounding at 0 and 1


def _effective_size(kinds: NDArray[np.float64], counts: NDArray[np.int64], level: float) -> float:
    """Return n / deff, at most n. If all values are equal, deff is unknown: the number of clusters.

    With clusters of several edits the variance has C - 1 degrees of freedom, so Student's quantile
    replaces the normal one.
    """
    clusters, (totals, sizes) = int(counts.sum()), kinds.T
    n = float(counts @ sizes)
    if n == clusters:
        return n
    share = float(counts @ totals) / n
    residual = float(counts @ (totals - share * sizes) ** 2)
    if residual < 1e-12 * n:
        return float(clusters)
    variance = clusters / (clusters - 1) * residual / n**2
    effect = max(1.0, variance * (n - 1) / (share * (1 - share)))
    tail = (1 + level) / 2
    return n / effect * float(stats.norm.ppf(tail) / stats.t.ppf(tail, clusters - 1)) ** 2


def _checked(values: ArrayLike, clusters: Sequence[Hashable]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) != len(clusters):
        raise DataError(
            f"values of shape {array.shape} with {len(clusters)} clusters; "
            "give one value and one cluster per edit"
        )
    if len(array) == 0:
        raise DataError("no values to average; give at least one edit")
    bad = int(len(array) - np.isfinite(array).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(array)} values are NaN or infinite, first at position "
            f"{int(np.argmin(np.isfinite(array)))}; a mean over the rest would hide a failed edit"
        )
    return array


def _kinds_of_cluster(
    values: NDArray[np.float64], clusters: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the distinct (sum, size) of the clusters, sorted, and how many clusters have each.

    Clusters of one kind are exchangeable, so kinds can be drawn in place of clusters. Accuracies
    have few kinds: ten thousand edits take milliseconds instead of tens of millions of draws.
    """
    codes: dict[Hashable, int] = {}
    code = np.array([codes.setdefault(cluster, len(codes)) for cluster in clusters])
    order = np.argsort(values)  # added up in one order, whatever the order of the records
    sums = np.bincount(code[order], weights=values[order]).astype(np.float64)
    sizes = np.bincount(code).astype(np.float64)
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    return kinds, counts.astype(np.int64)


def _resampled_means(
    kinds: NDArray[np.float64],
    counts: NDArray[np.int64],
    rng: np.random.Generator,
    resamples: int,
) -> NDArray[np.float64]:
    clusters = int(counts.sum())
    rows = max(1, _DRAWS_AT_ONCE // clusters)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    if len(counts) * 8 < clusters:  # a multinomial draw of a kind costs about eight plain draws
        totals = [rng.multinomial(clusters, counts / clusters, size) @ kinds for size in sizes]
    else:
        sums, n = np.repeat(kinds, counts, axis=0).T
        drawn = (rng.integers(clusters, size=(size, clusters), dtype=np.int32) for size in sizes)
        totals = [np.stack([sums[i].sum(axis=1), n[i].sum(axis=1)], axis=1) for i in drawn]
    total, n = np.concatenate(totals).T
    return total / n
