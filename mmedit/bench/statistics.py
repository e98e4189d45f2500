"""How sure a mean is: the percentile bootstrap over whole clusters.

θ* = Σ_c w_c S_c / Σ_c w_c n_c with w ~ Multinomial(C, 1/C), where S_c and n_c are the sum and the
size of cluster c; the interval is the (1 ± level) / 2 quantiles of θ*. Edits that share an image
succeed and fail together, so images are drawn, not edits (Field and Welsh, "Bootstrapping clustered
data", JRSS B 2007).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmedit.errors import DataError

RESAMPLES = 2000
LEVEL = 0.95
_DRAWS_AT_ONCE = 1_000_000  # bounds the memory, not the result


@dataclass(frozen=True)
class Summary:
    """A mean of `n` values with its interval.

    `low` and `high` are NaN where there is a single cluster, which tells nothing about the spread.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Half of the interval: what stands behind ± in a table."""
        return (self.high - self.low) / 2

    def __float__(self) -> float:
        return self.mean


def summarise(values: ArrayLike, clusters: Sequence[Hashable], *, seed: int = 0) -> Summary:
    """Mean, 95 % clustered bootstrap interval and n of one value per edit.

    >>> summarise([1.0, 0.0, 1.0, 1.0], ["a", "a", "b", "c"])
    Summary(mean=0.75, low=0.5, high=1.0, n=4)
    """
    array = _checked(values, clusters)
    low, high = clustered_bootstrap_interval(array, clusters, seed=seed)
    return Summary(float(array.mean()), low, high, len(array))


def clustered_bootstrap_interval(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, drawing whole clusters with replacement.

    `clusters[i]` names the cluster of `values[i]`; their order does not matter. A single cluster
    gives (NaN, NaN): nothing can be drawn from it. Raises DataError for no values, NaN or infinity.
    """
    array = _checked(values, clusters)
    kinds, counts = _kinds_of_cluster(array, clusters)
    if counts.sum() == 1:
        return float("nan"), float("nan")
    means = _resampled_means(kinds, counts, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
    """The distinct (sum, size) of the clusters, sorted, and how many clusters have each.

    Clusters of one kind are exchangeable, so drawing kinds is drawing clusters. Accuracies have few
    kinds: ten thousand edits take milliseconds instead of tens of millions of draws.
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
