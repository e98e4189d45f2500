"""A value at the output of a feed-forward block, and at the output of its layer."""

from __future__ import annotations

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
            config = {"layers": (layer,), "covariance": False, "position": position, "contexts": 1}
            editor = ROME(ROMEConfig.model_validate(config))
            start = editor.keys_at(vlm, [ASKED], [vlm.value_sites[layer]], after=layer + 1)
            (keys,) = start.values()
            at_layer = editor.found_values(vlm, [ASKED], layer, keys.output)
            with monkeypatch.context() as patch:
                patch.setattr(located, "is_direct", lambda *_: False)
                at_block = editor.found_values(vlm, [ASKED], layer, keys.output)
            torch.testing.assert_close(at_layer, at_block, rtol=1e-3, atol=1e-3)
