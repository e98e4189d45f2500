"""A trace with its shared forwards equals one restoration per whole forward."""

from __future__ import annotations

import pytest
import torch
from naive_trace import naive_trace
from tiny import random_image
from tiny_families import build_family

import mmedit
from mmedit.adapters import adapter_for
from mmedit.cases import Example
from mmedit.trace.corruption import corrupted, sigma_of
from mmedit.trace.groups import groups_of
from mmedit.trace.item import trace_item
from mmedit.trace.settings import COMPONENTS, Corruption, TraceSettings
from mmedit.vlm.network import NetworkVLM

IMAGE = Example(prompt="what color is the shape?", target="blue", image=random_image(0))
TEXT = Example(prompt="what is the capital of Albania?", target="Tirana", subject="Albania")


def family(name: str) -> NetworkVLM:
    network, processor = build_family(name)
    return NetworkVLM(adapter_for(network.config)(network, processor))


def assert_equals_naive(vlm: NetworkVLM, example: Example, corruption: Corruption) -> None:
    settings = TraceSettings(corruption=corruption, draws=2, window=2, cells=2, noise=1.0)
    items = {"a": example}
    sigma = sigma_of(vlm, items, settings)
    assert sigma
    runs, item = corrupted(vlm, "a", items, (settings, sigma))
    assert item is not None
    record = trace_item(runs, item, settings)
    masks = groups_of(runs.places, settings.cells, runs.image_grid).masks
    corrupt, restored = naive_trace(vlm, item, masks, settings.window_of(len(vlm.adapter.layers)))
    assert torch.tensor(record.corrupt.answer).sub(corrupt).abs().max() < 1e-5
    found = torch.tensor([record.restored[component].answer for component in COMPONENTS])
    whole = restored[:, : len(record.groups)]
    assert found.sub(whole).abs().max() < 1e-5
    assert found.div(whole).sub(1).abs().max() < 1e-3  # answers of tiny models are unlikely
    assert (record.cells is None) == (example.image is None)
    if record.cells:
        cells = restored[0, len(record.groups) :][:, record.cells.layers]
        assert torch.tensor(record.cells.restored.answer).div(cells).sub(1).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("example", "corruption"),
    [(IMAGE, "image_noise"), (IMAGE, "text_noise"), (TEXT, "text_noise")],
    ids=["image noise", "question noise", "subject noise"],
)
def test_a_trace_of_the_embedded_vlm_equals_one_restoration_per_forward(example, corruption):
    assert_equals_naive(mmedit.load_vlm("embedded"), example, corruption)


@pytest.mark.parametrize("name", ["photo", "gemma3", "qwen3_vl"])
@pytest.mark.parametrize(
    ("example", "corruption"), [(IMAGE, "image_noise"), (TEXT, "text_noise")],
    ids=["image noise", "subject noise"],
)  # fmt: skip
def test_a_trace_of_other_families_equals_one_restoration_per_forward(name, example, corruption):
    """The image tokens of Gemma-3 look at each other in both directions, and Qwen3-VL adds image
    features behind its layers.
    """
    assert_equals_naive(family(name), example, corruption)
