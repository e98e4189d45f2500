"""LLaVA's language model reads a layer of the vision tower before the last one; those after it do
not run.
"""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import tiny_families
import torch

from mmedit.adapters import adapter_for
from mmedit.cases import Example


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_vision_layers_that_nothing_reads_do_not_run_and_no_feature_changes(family: str):
    network: Any
    network, processor = tiny_families.build_family(family)
    adapter = adapter_for(network.config)(network, processor)
    image = adapter.see(Example(prompt="a", target="b", image=tiny.random_image(0)))
    layers = network.model.vision_tower.encoder.layers
    read = network.config.vision_feature_layer % (len(layers) + 1)
    ran: list[int] = []
    for number, layer in enumerate(layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        (found,) = adapter.encode([image])
        assert ran == list(range(read)) != list(range(len(layers)))
        whole = network.get_image_features(**image.pixels, return_dict=True)
    assert torch.equal(found, whole.pooler_output[0])
