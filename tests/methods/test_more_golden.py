"""M-ORE's and ScopeEdit's steps against the published code (golden kind `more`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from golden_files import GoldenCase, golden_cases, under
from torch import Tensor
from torch.nn import functional as F

from mmedit.deltas import LowRank
from mmedit.methods.more.steps import Part, damped, gate, mean_over, projector_of

CASES = golden_cases("more")
MORE = [case for case in CASES if case.name.startswith("more")]
SCOPE = [case for case in CASES if case.name.startswith("scope")]
of_more = pytest.mark.parametrize("case", MORE, ids=[case.name for case in MORE])
of_scope = pytest.mark.parametrize("case", SCOPE, ids=[case.name for case in SCOPE])


def steps(case: GoldenCase) -> Iterator[dict[str, Tensor]]:
    for number in range(len(case.facts["steps"])):
        yield under(f"step_{number}", case.tensors)


def begun(out: int, rank: int, dtype: torch.dtype = torch.float32) -> Part:
    b, keys = (torch.zeros(rows, rank, dtype=dtype) for rows in (out, 0))
    return Part(b, torch.eye(rank, dtype=dtype), keys)


def code_of(case: GoldenCase, x: Tensor) -> Tensor:
    """The code of every token. The published setting for BLIP-2 puts a layer norm on it."""
    code = x @ case.tensors["A"].to(x).mT
    return F.layer_norm(code, code.shape[-1:]) if case.facts["layer_norm_on_code"] else code


def key(case: GoldenCase, values: Tensor, *, late: bool) -> Tensor:
    """The mean over the positions that predict the answer; `late`, over the answer itself."""
    tokens, answer = len(values), case.facts["answer"]
    place = torch.arange(tokens)
    first = tokens - answer - (0 if late else 1)
    mask = (place >= first) & (place < first + answer)
    return mean_over(values[None], mask[None])[0]


def output(case: GoldenCase, x: Tensor, basis: Tensor, b: Tensor) -> Tensor:
    base = F.linear(x, case.tensors["W"], case.tensors["bias"])
    return base + LowRank(case.facts["scaling"] * b.mT, basis)(x[None])[0]


def close(found: Tensor, expected: Tensor, tolerance: float = 5e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@of_more
def test_a_key_is_the_mean_code_of_its_positions(case: GoldenCase):
    for tensors in steps(case):
        close(key(case, code_of(case, tensors["x"]), late=True), tensors["published_z"])
        right = key(case, code_of(case, tensors["x"].double()), late=False)
        close(right, tensors["right_z_float64"], 1e-12)


@of_more
def test_steps_with_the_published_keys_are_the_published_ones(case: GoldenCase):
    state = begun(case.facts["d_out"], case.facts["rank"])
    for tensors in steps(case):
        z = key(case, code_of(case, tensors["x"]), late=True)
        state = stepped(case, state, tensors["gradient_B"], z)
        close(state.b, tensors["published_B"])
        close(state.projector, tensors["published_P"])


@of_more
def test_steps_with_the_right_keys_are_exact_in_float64(case: GoldenCase):
    state = begun(case.facts["d_out"], case.facts["rank"], torch.float64)
    keys: list[Tensor] = []
    for tensors in steps(case):
        keys.append(key(case, code_of(case, tensors["x"].double()), late=False))
        state = stepped(case, state, tensors["gradient_B"].double(), keys[-1])
        close(state.b, tensors["right_B_float64"], 1e-12)
        close(state.projector, tensors["right_P_float64"], 1e-12)
        # An edit in a sequence begins with the P of all keys before it.
        close(projector_of(torch.stack(keys), case.facts["lambda"]), state.projector, 1e-12)


def stepped(case: GoldenCase, state: Part, gradient: Tensor, z: Tensor) -> Part:
    facts: dict[str, Any] = case.facts
    return state.stepped(gradient, z, lr=facts["eta"], damping=facts["lambda"])


@of_more
def test_one_more_key_alone_damps_its_direction(case: GoldenCase):
    *_, last = steps(case)
    after = under("after", case.tensors)
    z = key(case, code_of(case, after["x"]), late=True)
    found = damped(last["published_P"], z, case.facts["lambda"])
    close(found, after["P_with_one_more_key"])
    all_keys = torch.stack([*(tensors["published_z"] for tensors in steps(case)), z])
    close(projector_of(all_keys, case.facts["lambda"]), after["P_with_one_more_key"])


@of_more
def test_the_low_rank_delta_gives_the_published_outputs(case: GoldenCase):
    if case.facts["layer_norm_on_code"]:
        assert case.facts["deviation_from_additivity_of_the_added_output"] > 0.1
        return  # no delta of a weight, so it is no setting here
    basis, b = case.tensors["A"], torch.zeros(case.facts["d_out"], case.facts["rank"])
    for tensors in steps(case):
        close(output(case, tensors["x"], basis, b), tensors["output_before_update"])
        b = tensors["published_B"]
    after = under("after", case.tensors)
    close(output(case, after["x"], basis, b), after["output"])


@of_scope
def test_a_scopeedit_writes_private_and_shared_rows_as_published(case: GoldenCase):
    facts = case.facts
    private, shared = (begun(facts["d_out"], facts[part]) for part in ("private", "shared"))
    basis = torch.cat([case.tensors["A_private"], case.tensors["A_shared"]])
    for tensors, said in zip(steps(case), facts["steps"], strict=True):
        b = torch.cat([private.b, shared.b], dim=-1)
        close(output(case, tensors["x"], basis, b), tensors["output_before_update"])
        code = tensors["x"] @ basis.mT
        z, own = key(case, code, late=True).split([facts["private"], facts["shared"]])
        is_image = torch.arange(facts["T"]) < facts["image_tokens"]
        other = mean_over(code[None], is_image[None])[0, facts["private"] :]
        for name, found in (("z_private", z), ("u_self", own), ("u_other", other)):
            close(found, tensors[name])
        gated = gate(own[None], other[None], tau=facts["tau"], beta=facts["beta"])
        assert gated.own.item() == pytest.approx(said["gamma_self"], abs=5e-6)
        assert gated.other.item() == pytest.approx(said["gamma_other"], abs=5e-6)
        close(gated.key[0], tensors["q"])
        private = stepped(case, private, tensors["gradient_B_private"], z)
        shared = shared.stepped(
            gated.own * tensors["gradient_B_shared"],
            gated.key[0],
            lr=facts["eta_shared"],
            damping=facts["lambda_shared"],
        )
        for part, state in (("private", private), ("shared", shared)):
            close(state.b, tensors[f"B_{part}"])
            close(state.projector, tensors[f"P_{part}"])
