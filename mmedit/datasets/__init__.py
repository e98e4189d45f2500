"""Benchmarks: files to edit cases. A new dataset is one file and one row here."""

from collections.abc import Callable, Sequence

from mmedit.cases import EditCase
from mmedit.datasets.annotated import releases
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.datasets.grocery import cases as grocery

DATASETS: dict[str, Callable[..., Sequence[EditCase]]] = {
    "easyvqa": easyvqa.load,
    "grocery": grocery.load,
    **{name: releases.loader(name) for name in releases.SOURCES},
}
"""Loaders by name; each takes a split, keyword settings (see `configs/dataset`), `limit`, `seed`
and `progress`.
"""

__all__ = ["DATASETS"]
