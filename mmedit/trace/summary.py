"""Recovery rates of a trace, from its records alone.

    RR = mean over items of IE / mean over items of TE

The ratio of means does not let an item count more because its TE is small. Its interval is from a
bootstrap over items: 2,000 resamples, the 2.5 % and 97.5 % quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas
from numpy.typing import NDArray

from mmedit.errors import DataError
from mmedit.trace.records import TraceManifest, TraceRecord, read_files
from mmedit.trace.settings import COMPONENTS, GROUPS, Component

Score = Literal["first", "answer"]
SCORES: tuple[Score, ...] = ("answer", "first")
NOTICED = 0.05
"""Total effect of an item, and rate of a group, below which nothing is read from them."""
RESAMPLES = 2000
LEVEL = 0.95
FEWEST = 4
"""Items of which one half can choose a layer, and the other measure it, at least."""
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Recovery:
    """Means over items with one component put back: rows are groups, columns are layers."""

    component: Component
    groups: tuple[str, ...]
    n: tuple[int, ...]
    """Number of items that have the group."""
    total_effect: Array
    """TE of the items that have the group, [groups]."""
    effect: Array
    """IE, [groups, layers]."""
    rate: Array
    """RR, [groups, layers]; NaN if TE is not above 0."""
    low: Array
    """Lower end of the interval of RR; NaN for a single item."""
    high: Array


@dataclass(frozen=True)
class Halves:
    """The layer that is best in one half of the items, and what it brings back in the other."""

    layer: int
    rate: float
    """Recovery rate in the other half; NaN if the corruption takes away too little there."""
    interval: tuple[float, float]

    def __str__(self) -> str:
        return "–" if np.isnan(self.rate) else f"{self.rate:.2f} ({_ends(self.interval)})"


@dataclass(frozen=True)
class Best:
    """The layer in which a component of a group brings back most of the answer."""

    component: Component
    group: str
    n: int
    layer: int | None
    """None if no layer brings back `NOTICED`."""
    rate: float
    interval: tuple[float, float] | None
    """None for a single item."""
    total_effect: float
    effect: float
    halves: Halves | None
    """None with fewer than `FEWEST` items, and if no layer is best."""

    @property
    def ends(self) -> str:
        """The interval as text; "–" for a single item."""
        return "–" if self.interval is None else _ends(self.interval)


@dataclass(frozen=True, eq=False)
class Trace:
    """The records of a trace, and what they come from."""

    records: tuple[TraceRecord, ...]
    manifest: TraceManifest

    @property
    def components(self) -> tuple[Component, ...]:
        """The components that were restored."""
        return tuple(one for one in COMPONENTS if one in self.manifest.settings.components)

    @property
    def total_effect(self) -> float:
        """Mean TE of the probability of the answer, over all items."""
        return float(np.mean([effect_of(record, "answer") for record in self.records]))

    def recovery(self, component: Component = "block", score: Score = "answer") -> Recovery:
        """Return the recovery rates with a component put back. Raises DataError."""
        if component not in self.components:
            raise DataError(
                f"the trace has no {component!r}; it has {', '.join(self.components)}: trace again "
                "with this component"
            )
        names = {group.name for record in self.records for group in record.groups}
        groups = tuple(name for name in GROUPS if name in names)
        means = [_means(*_of_group(self.records, component, one, score)) for one in groups]
        n, *arrays = zip(*means, strict=True)
        return Recovery(component, groups, n, *(np.array(one) for one in arrays))

    def table(self) -> pandas.DataFrame:
        """Return every rate with its interval: a row for each component, group, layer and score."""
        found = [(s, self.recovery(c, s)) for s in SCORES for c in self.components]
        rows = [
            (one.component, group, layer, score, one.n[g], one.total_effect[g], *values)
            for score, one in found
            for g, group in enumerate(one.groups)
            for layer, values in enumerate(
                zip(one.effect[g], one.rate[g], one.low[g], one.high[g], strict=True)
            )
        ]
        return pandas.DataFrame(
            rows,
            columns=["component", "group", "layer", "score", "n", "TE", "IE", "RR", "low", "high"],
        )

    def best(self) -> tuple[Best, ...]:
        """Return, for each component and group, the layer with the highest rate of the answer."""
        found = [self.recovery(component) for component in self.components]
        return tuple(
            _best(one, row, self._halves(one.component, one.groups[row]))
            for one in found
            for row in range(len(one.groups))
            if not np.isnan(one.rate[row]).any()
        )

    def _halves(self, component: Component, group: str) -> Halves | None:
        """Return the layer that every other item that has the group chooses, and its rate in the
        remaining ones.
        """
        total, indirect = _of_group(self.records, component, group, "answer")
        rates = _means(total[::2], indirect[::2])[3]
        if len(total) < FEWEST or np.isnan(rates).any() or rates.max() < NOTICED:
            return None
        layer = int(rates.argmax())
        _, _, _, *others = _means(total[1::2], indirect[1::2])
        rate, low, high = (round(float(one[layer]), 4) + 0.0 for one in others)
        return Halves(layer, rate, (low, high))


def read_trace(folder: str | Path) -> Trace:
    """Read a folder of `mmedit trace`. Raises DataError."""
    records, manifest = read_files(Path(folder))
    order = {name: place for place, name in enumerate(manifest.items)}
    ordered = sorted(records, key=lambda record: order.get(record.id, len(order)))
    return Trace(tuple(ordered), manifest)


def effect_of(record: TraceRecord, score: Score) -> float:
    """Return the TE of one item."""
    return record.clean.mean(score) - record.corrupt.mean(score)


def _best(found: Recovery, row: int, halves: Halves | None) -> Best:
    layer = int(found.rate[row].argmax())
    rate, low, high = (float(one[row, layer]) for one in (found.rate, found.low, found.high))
    return Best(
        component=found.component,
        group=found.groups[row],
        n=found.n[row],
        layer=layer if rate >= NOTICED else None,
        rate=round(rate, 4) + 0.0,
        interval=None if np.isnan(low) else (round(low, 4) + 0.0, round(high, 4) + 0.0),
        total_effect=float(found.total_effect[row]),
        effect=float(found.effect[row, layer]),
        halves=halves,
    )


def _ends(interval: tuple[float, float]) -> str:
    return "{:.2f} to {:.2f}".format(*interval)


def _of_group(
    records: Sequence[TraceRecord], component: Component, group: str, score: Score
) -> tuple[Array, Array]:
    """Return TE [items] and IE [items, layers] of the items that have a group."""
    total, indirect = [], []
    for record in records:
        names = [one.name for one in record.groups]
        if group in names:
            restored = getattr(record.restored[component], score)[names.index(group)]
            total.append(effect_of(record, score))
            indirect.append(np.array(restored) - record.corrupt.mean(score))
    return np.array(total), np.array(indirect)


def _means(total: Array, indirect: Array) -> tuple[int, float, Array, Array, Array, Array]:
    """Return n, TE, IE, RR and both ends of its interval; no rate of a TE below `NOTICED`."""
    n, te, ie = len(total), float(total.mean()), indirect.mean(0)
    unknown = np.full_like(ie, np.nan)
    if te < NOTICED:
        return n, te, ie, unknown, unknown, unknown
    rate = ie / te
    if n == 1:
        return n, te, ie, rate, unknown, unknown
    drawn = np.random.default_rng(0).multinomial(n, [1 / n] * n, RESAMPLES) / n
    totals = drawn @ total
    rates = (drawn @ indirect)[totals > 0] / totals[totals > 0, None]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(rates, [tail, 1 - tail], axis=0)
    return n, te, ie, rate, low, high
