"""AlphaEdit's closed form against the published code, two calls in a row (golden `alphaedit`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from golden_files import GoldenCase, golden_cases, golden_files, read_golden_json, under
from torch import Tensor

from mmedit.editors.closed_form.second_moment import NullSpace
from mmedit.editors.closed_form.solves import alphaedit_delta
from mmedit.errors import EditorError

CASES = golden_cases("alphaedit")
ETA: float = read_golden_json(golden_files("alphaedit/cases.json")[0])["eta"]
LAYERS = [
    (case, number, case.facts["null_dimension_absolute"][number])
    for case in CASES
    for number in range(len(case.facts["layers"]))
]


def params(layers: list[tuple[GoldenCase, int, int]]):
    return pytest.mark.parametrize(
        ("case", "number"),
        [
            pytest.param(case, number, id=f"{case.name}-layer_{number}")
            for case, number, _ in layers
        ],
    )


of_every_layer = params(LAYERS)
of_layers_with_a_null_space = params([layer for layer in LAYERS if layer[2] > 0])
EMPTY = [layer for layer in LAYERS if layer[2] == 0]


def by_threshold(case: GoldenCase, number: int) -> NullSpace:
    second_moment = case.tensors[f"layer_{number}.C"]
    return NullSpace.of_threshold(second_moment, case.facts["nullspace_threshold"])


def by_share(case: GoldenCase, number: int) -> NullSpace:
    return NullSpace.of_share(case.tensors[f"layer_{number}.C"], ETA)


def projection_of(null_space: NullSpace) -> Tensor:
    return null_space.project(torch.eye(len(null_space.protected)))


@dataclass(frozen=True)
class Call:
    """One call at one layer: what it gave, the keys so far after it, and the golden tensors."""

    update: Tensor
    past: Tensor
    golden: dict[str, Tensor]


def calls(
    case: GoldenCase, number: int, null_space: NullSpace, dtype: torch.dtype
) -> Iterator[Call]:
    facts = case.facts
    past = torch.empty(0, facts["d_in"], dtype=torch.float64)
    for turn in range(len(facts["facts_per_call"])):
        call = under(f"call_{turn}", case.tensors)
        golden = under(f"layer_{number}", call)
        way = call["z"].to(dtype) - golden["current_z"].to(dtype)
        way = way / (len(facts["layers"]) - number)
        residuals = way.repeat_interleave(facts["keys_per_fact"], 0)
        delta = alphaedit_delta(golden["keys"].to(dtype), residuals, null_space, past, facts["L2"])
        past = torch.cat([past, null_space.project(golden["keys_after"])])
        yield Call(delta.weight(), past, golden)


def assert_relative(found: Tensor, expected: Tensor, tolerance: float) -> None:
    atol = tolerance * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@of_layers_with_a_null_space
def test_the_absolute_rule_has_the_projection_of_the_published_code(case: GoldenCase, number: int):
    null_space = by_threshold(case, number)
    assert null_space.dimension == case.facts["null_dimension_absolute"][number]
    expected = case.tensors[f"layer_{number}.P"]
    torch.testing.assert_close(projection_of(null_space).float(), expected, rtol=0, atol=5e-6)


@pytest.mark.skipif(not EMPTY, reason="no golden case has an empty null space")
def test_the_absolute_rule_refuses_a_scale_at_which_the_published_edit_is_empty():
    for case, number, _ in EMPTY:
        call = under(f"call_0.layer_{number}", case.tensors)
        assert torch.equal(call["W_new"], case.tensors[f"layer_{number}.W"])
        with pytest.raises(EditorError, match=r"edit would be empty.*share of the trace"):
            by_threshold(case, number)


@of_every_layer
def test_the_share_rule_has_the_projection_of_the_formula(case: GoldenCase, number: int):
    null_space = by_share(case, number)
    assert null_space.dimension == case.facts["null_dimension_share"][number]
    expected = case.tensors[f"layer_{number}.P_share_float64"]
    assert_relative(projection_of(null_space), expected, 1e-9)


@of_layers_with_a_null_space
def test_alphaedit_has_the_weights_of_the_published_code(case: GoldenCase, number: int):
    """The published code writes every call into the weight."""
    weight = case.tensors[f"layer_{number}.W"]
    for call in calls(case, number, by_threshold(case, number), torch.float32):
        expected = call.golden["W_new"]
        tolerance = 3e-5 * (expected - weight).abs().max().item() + 2e-6
        torch.testing.assert_close(weight + call.update, expected, rtol=0, atol=tolerance)
        weight = expected


@of_layers_with_a_null_space
def test_the_projected_keys_stand_for_the_published_state(case: GoldenCase, number: int):
    null_space = by_threshold(case, number)
    for call in calls(case, number, null_space, torch.float32):
        projection = projection_of(null_space)
        expected = projection @ call.golden["state_after"].double() @ projection
        assert_relative(call.past.mT @ call.past, expected, 1e-6)


@of_layers_with_a_null_space
def test_alphaedit_in_float64_is_the_formula_by_the_absolute_rule(case: GoldenCase, number: int):
    for call in calls(case, number, by_threshold(case, number), torch.float64):
        assert_relative(call.update, call.golden["update_float64"], 1e-9)


@of_every_layer
def test_alphaedit_in_float64_is_the_formula_by_the_share_rule(case: GoldenCase, number: int):
    for call in calls(case, number, by_share(case, number), torch.float64):
        assert_relative(call.update, call.golden["update_share_float64"], 1e-9)
