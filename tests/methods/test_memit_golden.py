"""MEMIT's closed form against the published code (golden kind `memit`)."""

from __future__ import annotations

import pytest
import torch
from golden_files import GoldenCase, golden_cases, under
from torch import Tensor

from mmedit.editors.closed_form.second_moment import Factor
from mmedit.editors.closed_form.solves import memit_delta

CASES = golden_cases("memit")
LAYERS = [
    pytest.param(case, number, id=f"{case.name}-layer_{number}")
    for case in CASES
    for number in range(len(case.facts["layers"]))
]


def update_of(case: GoldenCase, number: int, dtype: torch.dtype) -> Tensor:
    """The layer's update; the layers that are left share the way that is left to the targets. The
    golden numbers of both kinds begin with a difference in float32.
    """
    facts, layer = case.facts, under(f"layer_{number}", case.tensors)
    way = (case.tensors["z"] - layer["current_z"]).to(dtype) / (len(facts["layers"]) - number)
    residuals = way.repeat_interleave(facts["keys_per_edit"], 0)
    weight = facts["mom2_update_weight"]
    delta = memit_delta(layer["keys"].to(dtype), residuals, Factor.of(layer["C"]), weight)
    assert delta.u.shape[0] == len(layer["keys"])
    return delta.weight()


@pytest.mark.parametrize(("case", "number"), LAYERS)
def test_memit_has_the_weight_of_the_published_code(case: GoldenCase, number: int):
    layer = under(f"layer_{number}", case.tensors)
    found = layer["W"] + update_of(case, number, torch.float32)
    torch.testing.assert_close(found, layer["W_new"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("case", "number"), LAYERS)
def test_memit_in_float64_is_the_formula_in_float64(case: GoldenCase, number: int):
    found = update_of(case, number, torch.float64)
    expected = under(f"layer_{number}", case.tensors)["update_float64"]
    tolerance = 1e-9 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
