"""VisEdit's adaptor and influence losses against the published code (golden kind `vead`).

The published target of the influence map is not used by mmedit, nor are its losses over pooled
tokens (`mmedit.methods.visedit` says why).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from golden_files import GoldenCase, golden_cases, under
from torch import Tensor

from mmedit.adapters.places import Places
from mmedit.editors.blocks import BlockOutput
from mmedit.methods.visedit.config import VisEditConfig
from mmedit.methods.visedit.network import (
    Adaptor,
    InfluenceMap,
    Signal,
    image_shift,
    influence_losses,
)

CASES = golden_cases("vead")
ADAPTORS = [case for case in CASES if case.name.startswith("adaptor")]
LOSSES = [case for case in CASES if case.name.startswith("losses")]
OURS = {
    "cross_att_q_mlp": "attention.q",
    "cross_att_k_mlp": "attention.k",
    "cross_att_v_mlp": "attention.v",
    "mlp_begin": "begin",
    "mlp_end": "end",
    "influence_mapper": "influence",
    "img_map": "image_map",
    "prompt_token_map": "edit_map",
    "ln_img_reps": "image_norm",
    "ln_edit_reps": "edit_norm",
}
"""Names of the published code, and ours."""


def ids(cases: Sequence[GoldenCase]) -> list[str]:
    return [case.name for case in cases]


def ours(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        ".".join(OURS.get(part, part) for part in name.split(".")): tensor
        for name, tensor in weights.items()
    }


def close(found: Tensor, expected: Any, atol: float) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=atol)


def adaptor_of(case: GoldenCase) -> Adaptor:
    facts = case.facts
    config = VisEditConfig(module=facts["mid"], heads=facts["heads"], influence=facts["infm"])
    adaptor = Adaptor(facts["d"], config)
    adaptor.load_state_dict(ours(under("weights", case.tensors)))
    return adaptor.requires_grad_(False)


def block_of(case: GoldenCase) -> BlockOutput:
    hidden = case.tensors["hidden"]
    is_image = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    is_image[:, case.facts["image_start"] : case.facts["image_stop"]] = True
    none = torch.zeros_like(is_image)
    places = Places(
        is_real=~none, is_image=is_image, is_prompt=none, is_subject=none, is_answer=none
    )
    return BlockOutput(hidden, places)


def signal_of(case: GoldenCase) -> Signal:
    states, mask = case.tensors["edit_hidden"], case.tensors["edit_mask"].bool()
    end = states[torch.arange(len(states)), case.tensors["last_prompt"]]
    return Signal(states.masked_fill(~mask.unsqueeze(-1), 0), end)


@pytest.mark.parametrize("case", ADAPTORS, ids=ids(ADAPTORS))
def test_the_image_states_change_as_published(case: GoldenCase):
    block = block_of(case)
    shift, s = image_shift(adaptor_of(case), block, signal_of(case))
    close(s, case.tensors["influence"], 1e-5)
    close(block.states + shift(block.states), case.tensors["output"], 2e-5)


@pytest.mark.parametrize("case", ADAPTORS, ids=ids(ADAPTORS))
def test_without_the_influence_map_the_whole_change_is_added(case: GoldenCase):
    adaptor, hidden = adaptor_of(case), case.tensors["hidden"]
    image = hidden[:, case.facts["image_start"] : case.facts["image_stop"]]
    value, s = adaptor(image, signal_of(case))
    expected = case.tensors["output_without_influence"] - hidden
    expected = expected[:, case.facts["image_start"] : case.facts["image_stop"]]
    close(value / s.sigmoid().unsqueeze(-1), expected, 2e-5)


@pytest.mark.parametrize("case", LOSSES, ids=ids(LOSSES))
def test_influence_losses_are_the_published_ones(case: GoldenCase):
    weights = under("weights", case.tensors)
    width, hidden = weights["img_map.l_in.weight"].shape
    influence = InfluenceMap(hidden, VisEditConfig(heads=case.facts["heads"], influence=width))
    influence.load_state_dict(ours(weights))
    influence.requires_grad_(False)
    end = case.tensors["last_prompt"]
    near, far = (influence(case.tensors[f"{kind}_image"], end) for kind in ("rg", "loc"))
    up, down = influence_losses(near, far)
    share = case.facts["inf_mapper_lambda"]  # the published losses have their weight in them
    close(share * up, case.facts["losses"]["influence_up"], 1e-5)
    close(share * down, case.facts["losses"]["influence_down"], 1e-5)
