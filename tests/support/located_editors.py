"""Editors that locate facts, fitted on the embedded VLM, and facts for them to edit."""

from __future__ import annotations

from typing import Any

import pytest

from mmedit.cases import EditCase, Example
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.fitting import Fitting
from mmedit.methods.alphaedit import AlphaEdit, AlphaEditConfig
from mmedit.methods.rome import ROME, ROMEConfig
from mmedit.vlm.network import NetworkVLM

ITALY, FRANCE, KENYA = (
    Example(prompt=f"what is the capital of {country}?", target=city, subject=country)
    for country, city in (("Italy", "Lusaka"), ("France", "Quito"), ("Kenya", "Oslo"))
)
COMMON: dict[str, Any] = {"position": "answer", "contexts": 1, "value": {"clamp": 2.0, "lr": 0.5}}


@pytest.fixture(scope="module")
def train() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=40))


@pytest.fixture(scope="module")
def rome(vlm: NetworkVLM, train: list[EditCase]) -> ROME:
    return ROME(ROMEConfig(layers=(3,), **COMMON)).fit(vlm, Fitting(train))


@pytest.fixture(scope="module")
def alphaedit(vlm: NetworkVLM, train: list[EditCase]) -> AlphaEdit:
    config = AlphaEditConfig(layers=(2, 3), l2=0.1, tokens="all", eta=0.05, **COMMON)
    return AlphaEdit(config).fit(vlm, Fitting(train))
