"""Published values beside measured ones, each with its metric class.

The values are data in configs/published/*.yaml. A difference is given only if both numbers are of
one metric class: an exact match says nothing about a token accuracy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pandas
import yaml
from pydantic import Field, ValidationError, model_validator

from mmedit.cases import Probe
from mmedit.errors import DataError, UnknownNameError
from mmedit.report.columns import Measure, measure_of
from mmedit.report.intervals import Summary
from mmedit.report.runs import Origin
from mmedit.report.scores import is_base
from mmedit.report.table import column_names
from mmedit.settings import Settings
from mmedit.storage import config_folder

NOT_COMPARABLE = "not comparable"
Names = dict[str, tuple[str, ...]]


class Published(Settings):
    """A file of configs/published. `models`, `datasets` and `methods` hold other names of each."""

    source: str
    notes: tuple[str, ...] = ()
    metrics: dict[Probe, str]
    models: Names
    datasets: Names
    methods: Names = Field(default_factory=dict)
    values: dict[str, dict[str, dict[str, tuple[float | None, ...]]]]
    """By model, dataset and method: one value for each of `metrics`, in order, or null."""

    @model_validator(mode="after")
    def _complete(self) -> Published:
        for model, by_dataset in self.values.items():
            for dataset, by_method in by_dataset.items():
                if model not in self.models or dataset not in self.datasets:
                    raise ValueError(f"{model} or {dataset} is not among models and datasets")
                for method, values in by_method.items():
                    if len(values) != len(self.metrics):
                        raise ValueError(
                            f"{model}, {dataset}, {method}: {len(values)} values for "
                            f"{len(self.metrics)} metrics; write null where none is published"
                        )
        return self


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


def published_names() -> list[str]:
    """List the tables that `--published` can name."""
    return sorted(file.stem for file in (config_folder() / "published").glob("*.yaml"))


def load_published(name: str) -> Published:
    """Read the published values of one paper. Raises UnknownNameError and DataError."""
    if name not in published_names():
        raise UnknownNameError("published table", name, published_names())
    file = config_folder() / "published" / f"{name}.yaml"
    try:
        return Published.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise DataError(f"{file} is not a valid table of published values: {error}") from error


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
    rows: list[Beside] = []
    missing: list[str] = []
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
    if not rows:
        raise DataError(
            f"{published.source} has no value for any row: {'; '.join(missing)}. Models: "
            f"{', '.join(published.models)} (--published-model); datasets: "
            f"{', '.join(published.datasets)} (--published-dataset); methods: "
            f"{', '.join(_methods(published))}"
        )
    return Comparison(published.source, tuple(rows), (*published.notes, *_unmatched(missing)))


def _beside(
    table: pandas.DataFrame, editor: str, published: Published, values: tuple[float | None, ...]
) -> list[Beside]:
    by_split = {
        probe.heading: (value, metric)
        for (probe, metric), value in zip(published.metrics.items(), values, strict=True)
    }
    found: list[Beside] = []
    for column in column_names(table):
        measure, cell = measure_of(*column), table.loc[editor, column]
        value, metric = by_split.get(column[0], (None, ""))
        if measure is not None and isinstance(cell, Summary) and value is not None:
            found.append(Beside(editor, column[0], measure, cell, value, metric))
    return found


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
