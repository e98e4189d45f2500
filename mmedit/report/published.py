"""Published values beside measured ones, each with its metric class.

A difference is given only if both numbers are of one metric class: an exact match says nothing
about a token accuracy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import pandas

from mmedit.cases import Probe
from mmedit.errors import DataError, UnknownNameError
from mmedit.report.columns import COMBINED, Measure, measure_of
from mmedit.report.intervals import Summary
from mmedit.report.papers import Names, PaperProtocol, Published
from mmedit.report.runs import Origin
from mmedit.report.scores import is_base
from mmedit.report.table import column_names

NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class Beside:
    """A measured cell and the published value of the same method and probe."""

    editor: str
    heading: str
    measure: Measure
    measured: Summary
    value: float
    metric: str

    @property
    def difference(self) -> float | None:
        """Measured minus published, in points; None if the two are of different metric classes."""
        return self.measured.mean - self.value if self.metric == self.measure.metric else None


@dataclass(frozen=True)
class Comparison:
    """All cells that have a published value, and notes about the others."""

    source: str
    rows: tuple[Beside, ...]
    notes: tuple[str, ...]


def compare_with_published(
    table: pandas.DataFrame,
    published: Published,
    origins: Mapping[str, Origin],
    *,
    model: str | None = None,
    dataset: str | None = None,
) -> Comparison:
    """Put the published value beside every cell of a method table that has one.

    Rows are matched by the method's label, their VLM and dataset by the names of `origins`, which
    `model` and `dataset` replace. Raises DataError if no row has a published value.
    """
    [found] = comparisons([(table, origins)], published, model=model, dataset=dataset)
    return found


def comparisons(
    tables: Sequence[tuple[pandas.DataFrame, Mapping[str, Origin]]],
    published: Published,
    *,
    model: str | None = None,
    dataset: str | None = None,
) -> list[Comparison]:
    """Put published values beside several tables, each with the origins of its rows.

    Raises DataError if no row of any table has one.
    """
    found = [_compared(*table, published, model, dataset) for table in tables]
    if not any(rows for rows, _, _ in found):
        missing = "; ".join(name for _, names, _ in found for name in names)
        raise DataError(
            f"{published.source} has no value for any row: {missing}. Models: "
            f"{', '.join(published.models)} (--published-model); datasets: "
            f"{', '.join(published.datasets)} (--published-dataset); methods: "
            f"{', '.join(_methods(published))}"
        )
    return [
        Comparison(published.source, rows, (*published.notes, *differing, *_unmatched(missing)))
        for rows, missing, differing in found
    ]


class _Compared(NamedTuple):
    rows: tuple[Beside, ...]
    missing: list[str]
    """Rows without a published value."""
    differing: list[str]
    """Notes on how the measured VLM was asked in another way."""


def _compared(
    table: pandas.DataFrame,
    origins: Mapping[str, Origin],
    published: Published,
    model: str | None,
    dataset: str | None,
) -> _Compared:
    rows: list[Beside] = []
    missing: list[str] = []
    differing: dict[str, None] = {}
    for editor in map(str, table.index):
        origin = origins[editor]
        vlm = _named(published.models, model or origin.vlm, "model", chosen=model is not None)
        data = _named(
            published.datasets, dataset or origin.dataset, "dataset", chosen=dataset is not None
        )
        method = _method(published, editor)
        values = published.values.get(vlm or "", {}).get(data or "", {}).get(method or "")
        if values is None:
            missing.append(_missing(editor, origin, vlm, data))
        else:
            rows += _beside(table, editor, published, values)
            differing[differences(published, str(vlm), origin)] = None
    return _Compared(tuple(rows), missing, list(differing))


def differences(published: Published, model: str, origin: Origin) -> str:
    """Say in which way the paper asked its model, and the run its VLM."""
    paper = published.protocol.get(model, PaperProtocol())
    ours = origin.protocol or {}
    aspects = [
        _aspect("image size", ours.get("image_size"), paper.image_size),
        _aspect("text around a question", ours.get("text"), paper.text),
        _aspect("BOS token", _yes_or_no(ours.get("bos")), _yes_or_no(paper.bos)),
    ]
    told = "; ".join(aspect for aspect in aspects if aspect)
    return f"{origin.vlm} beside the paper's {model}: {told or 'no known difference'}."


def _aspect(name: str, ours: object, paper: object) -> str:
    """Name one difference; "" if there is none."""
    if ours is not None and ours == paper:
        return ""
    here = "not recorded in the run" if ours is None else f"{ours} here"
    return f"{name} {here}, {'not known in the paper' if paper is None else f'{paper} there'}"


def _yes_or_no(value: object) -> str | None:
    return None if value is None else ("yes" if value else "no")


def _beside(
    table: pandas.DataFrame, editor: str, published: Published, values: tuple[float | None, ...]
) -> list[Beside]:
    by_split = {
        _heading(probe): (value, metric)
        for (probe, metric), value in zip(published.metrics.items(), values, strict=True)
    }
    found: list[Beside] = []
    for column in column_names(table):
        measure, cell = measure_of(*column), table.loc[editor, column]
        value, metric = by_split.get(column[0], (None, ""))
        measured = isinstance(cell, Summary) and isfinite(cell.mean)
        if measure is not None and measured and value is not None:
            found.append(Beside(editor, column[0], measure, cell, value, metric))
    return found


def _heading(name: Probe | str) -> str:
    """Return the heading of a probe, or of a column of several."""
    if isinstance(name, Probe):
        return name.heading
    return next(combined.heading for combined in COMBINED if combined.title == name)


def _named(names: Names, name: str, kind: str, *, chosen: bool) -> str | None:
    for published, others in names.items():
        if name.casefold() in {published.casefold(), *(other.casefold() for other in others)}:
            return published
    if chosen:
        raise UnknownNameError(f"published {kind}", name, names)
    return None


def _method(published: Published, editor: str) -> str | None:
    """Find the method by its label; the run and the fitted folder may follow in parentheses."""
    bare = "base" if is_base(editor) else re.sub(r"( \([^()]*\))+$", "", editor)
    names = {method: (method, *published.methods.get(method, ())) for method in _methods(published)}
    for label in (editor.casefold(), bare.casefold()):
        for method, others in names.items():
            if label in map(str.casefold, others):
                return method
    return None


def _methods(published: Published) -> list[str]:
    found = (by for by_dataset in published.values.values() for by in by_dataset.values())
    return list(dict.fromkeys(method for by_method in found for method in by_method))


def _missing(editor: str, origin: Origin, vlm: str | None, dataset: str | None) -> str:
    if vlm is None:
        return f"{editor} (VLM {origin.vlm})"
    return f"{editor} (dataset {origin.dataset})" if dataset is None else editor


def _unmatched(missing: list[str]) -> list[str]:
    return [f"Not published there: {', '.join(missing)}."] if missing else []
