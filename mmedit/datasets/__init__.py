"""Datasets: files to edit cases. A new dataset is one file and one row here
(docs/adding-a-dataset.md).
"""

from mmedit.datasets.annotated.releases import (
    CCKEB,
    EIC,
    EVQA,
    MMKE,
    VLKEB,
    ADSEdit,
    ComprehendEdit,
    FGVEdit,
    OwnFiles,
)
from mmedit.datasets.base import DatasetSettings
from mmedit.datasets.easyvqa.cases import EasyVQA
from mmedit.datasets.fact_edits import Facts
from mmedit.datasets.grocery.cases import Grocery

DATASETS: dict[str, type[DatasetSettings]] = {
    "easyvqa": EasyVQA,
    "evqa": EVQA,
    "eic": EIC,
    "vlkeb": VLKEB,
    "mmke": MMKE,
    "comprehendedit": ComprehendEdit,
    "fgvedit": FGVEdit,
    "cckeb": CCKEB,
    "adsedit": ADSEdit,
    "grocery": Grocery,
    "facts": Facts,
    "json": OwnFiles,
}
"""The settings of each dataset, by the name of its loader in `configs/dataset`."""

__all__ = ["DATASETS"]
