"""ROME's closed form against the published code (golden kind `rome`)."""

from __future__ import annotations

import pytest
import torch
from golden_files import GoldenCase, golden_cases

from mmedit.deltas import LowRank
from mmedit.editors.closed_form.second_moment import Factor
from mmedit.editors.closed_form.solves import rome_delta

CASES = golden_cases("rome")
of_every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def delta_of(case: GoldenCase, dtype: torch.dtype = torch.float32) -> LowRank:
    tensors = {name: tensor.to(dtype) for name, tensor in case.tensors.items()}
    factor = Factor.of(tensors["C"]) if case.facts["mom2_adjustment"] else None
    change = tensors["v_star"] - tensors["cur_output"]
    mean_key, key = tensors["k_mean"], tensors["k_star"]
    return rome_delta(mean_key[None], key[None], change[None], factor)


@of_every_case
def test_rome_has_the_direction_of_the_published_code(case: GoldenCase):
    torch.testing.assert_close(delta_of(case).v[0], case.tensors["u"], rtol=0, atol=1e-6)


@of_every_case
def test_rome_has_the_weight_of_the_published_code(case: GoldenCase):
    update, expected = delta_of(case).weight(), case.tensors["W_new"]
    tolerance = 2e-5 * (expected - case.tensors["W"]).abs().max().item() + 1e-6
    torch.testing.assert_close(case.tensors["W"] + update, expected, rtol=0, atol=tolerance)


@of_every_case
def test_rome_gives_the_value_vector_at_the_key(case: GoldenCase):
    tensors = {name: tensor.double() for name, tensor in case.tensors.items()}
    weight = tensors["W"] + delta_of(case, torch.float64).weight()
    output = weight @ tensors["k_star"] + tensors["bias"]
    # The output before the edit was taken in float32.
    tolerance = 2e-6 * max(1, tensors["cur_output"].abs().max().item())
    torch.testing.assert_close(output, tensors["v_star"], rtol=0, atol=tolerance)
