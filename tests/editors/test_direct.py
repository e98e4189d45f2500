"""A value at the output of a feed-forward block, and at the output of its layer."""

from __future__ import annotations

import pytest
import tiny
import torch
from reuse import build

from mmedit.cases import Example
from mmedit.editors.closed_form import located
from mmedit.editors.closed_form.direct import is_direct
from mmedit.methods.rome import ROME, ROMEConfig
from mmedit.vlm.network import NetworkVLM

ASKED = Example(prompt="what is the capital of Italy?", target="Lusaka", subject="Italy")


def test_a_network_that_normalises_what_its_block_gives_is_not_direct(vlm):
    assert all(is_direct(vlm, layer, ASKED) for layer in range(4))
    assert not is_direct(build("gemma3"), 1, ASKED)
    assert is_direct(build("llava"), 1, ASKED)


def test_it_is_found_once_for_a_network_also_when_it_is_edited(vlm, monkeypatch):
    fresh = NetworkVLM(vlm.adapter)
    edited = ROME(ROMEConfig(layers=(3,), covariance=False)).apply(fresh, [ASKED])
    monkeypatch.setattr(NetworkVLM, "observe", None)
    assert is_direct(edited, 3, ASKED)


def test_values_are_the_same_at_the_block_and_at_the_layer(vlm, monkeypatch):
    for layer in (1, 3):
        for position in ("last_subject", "answer"):
            assert_same_values(vlm, [ASKED], layer, monkeypatch, position=position)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["blip2", "llava", "qwen2_vl", "photo"])
def test_values_are_the_same_for_images_and_rows_of_unequal_length(family, side, monkeypatch):
    network = NetworkVLM(build(family).adapter, padding_side=side)
    short, long = tiny.IMAGES[:2]
    asked = [
        Example(prompt="what is this?", target="white", image=short),
        Example(prompt="is there a small red circle here?", target="yes", image=long),
    ]
    for position in ("last_prompt", "image_mean"):
        assert_same_values(network, asked, 0, monkeypatch, position=position, value={"steps": 3})


def assert_same_values(vlm, asked, layer, monkeypatch, **settings):
    config = {"layers": (layer,), "covariance": False, "contexts": 1} | settings
    editor = ROME(ROMEConfig.model_validate(config))
    start = editor.keys_at(vlm, asked, [vlm.value_sites[layer]], after=layer + 1)
    (keys,) = start.values()
    assert is_direct(vlm, layer, asked[0])
    at_layer = editor.found_values(vlm, asked, layer, keys.output)
    with monkeypatch.context() as patch:
        patch.setattr(located, "is_direct", lambda *_: False)
        at_block = editor.found_values(vlm, asked, layer, keys.output)
    torch.testing.assert_close(at_layer, at_block, rtol=1e-3, atol=1e-3)
