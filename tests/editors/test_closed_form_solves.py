"""The low-rank closed forms are the matrix formulas, alone and in batches; faults are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmedit.deltas import LowRank
from mmedit.editors.closed_form.normaliser import EPSILON, Normaliser
from mmedit.editors.closed_form.second_moment import Factor, NullSpace
from mmedit.editors.closed_form.solves import (
    alphaedit_delta,
    memit_delta,
    rome_delta,
    ultraedit_delta,
)
from mmedit.errors import EditError, EditorError

EDITS, KEYS, IN, OUT = 3, 4, 9, 5
WEIGHT, L2, LR = 3.0, 2.0, 0.1
SEED = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=SEED, dtype=torch.float64)


def second_moment_of(tokens: Tensor) -> Tensor:
    return tokens.mT @ tokens / len(tokens)


# Three directions hardly vary: they are the null space.
SECOND_MOMENT = second_moment_of(normal(60, IN) * torch.tensor([1.0] * 6 + [0.01] * 3))
FACTOR = Factor.of(SECOND_MOMENT)
NULL_SPACE = NullSpace.of_share(SECOND_MOMENT, 0.01)
PAST = NULL_SPACE.project(normal(7, IN))
NORMALISER = Normaliser.empty(IN + OUT).with_rows(normal(50, IN + OUT))
KEY_ROWS, VALUE_ROWS = normal(EDITS, KEYS, IN), normal(EDITS, KEYS, OUT)

Method = Callable[[Tensor, Tensor], LowRank]
METHODS: dict[str, Method] = {
    "rome": lambda k, v: rome_delta(k[..., 1:2, :], k[..., :1, :], v[..., :1, :], FACTOR),
    "rome-without-c": lambda k, v: rome_delta(k[..., 1:2, :], k[..., :1, :], v[..., :1, :], None),
    "memit": lambda k, v: memit_delta(k, v, FACTOR, WEIGHT),
    "alphaedit": lambda k, v: alphaedit_delta(k, v, NULL_SPACE, PAST, L2),
    "alphaedit-first": lambda k, v: alphaedit_delta(k, v, NULL_SPACE, PAST[:0], L2),
    "ultraedit": lambda k, v: ultraedit_delta(k, v, NORMALISER, LR),
}


def formula(name: str, k: Tensor, v: Tensor) -> Tensor:
    """The update as the papers write it, with an in x in inverse."""
    identity = torch.eye(IN, dtype=torch.float64)
    if name.startswith("rome"):
        inverse = identity if name.endswith("without-c") else SECOND_MOMENT.inverse()
        u = inverse @ k[1]
        u = u / u.norm()
        return torch.outer(v[0] / (k[0] @ u), u)
    if name == "memit":
        return v.mT @ k @ (WEIGHT * SECOND_MOMENT + k.mT @ k).inverse()
    if name.startswith("alphaedit"):
        past = PAST[:0] if name.endswith("first") else PAST
        p = identity - NULL_SPACE.protected @ NULL_SPACE.protected.mT
        return ((p @ (k.mT @ k + past.mT @ past) + L2 * identity).inverse() @ p @ k.mT @ v).mT
    z = (torch.cat([k, v], -1) - NORMALISER.mean) / (NORMALISER.std + EPSILON)
    values = -LR * z[:, :IN].square().sum(-1, keepdim=True) * z[:, IN:]
    return ((k.mT @ k + identity).inverse() @ k.mT @ values).mT


def assert_same(found: Tensor, expected: Tensor) -> None:
    atol = 1e-12 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


of_every_method = pytest.mark.parametrize("name", METHODS)


@of_every_method
def test_the_low_rank_form_is_the_formula_with_matrices(name: str):
    delta = METHODS[name](KEY_ROWS[0], VALUE_ROWS[0])
    assert len(delta.u) == (1 if name.startswith("rome") else KEYS)
    assert_same(delta.weight(), formula(name, KEY_ROWS[0], VALUE_ROWS[0]))


@of_every_method
def test_separate_edits_in_one_batch_are_those_of_the_loop(name: str):
    together = METHODS[name](KEY_ROWS, VALUE_ROWS)
    assert together.edits == EDITS
    alone = [METHODS[name](k, v).weight() for k, v in zip(KEY_ROWS, VALUE_ROWS, strict=True)]
    assert_same(together.weight(), torch.stack(alone))


@of_every_method
def test_float32_and_less_give_float32_factors_that_were_computed_in_float64(name: str):
    k, v = KEY_ROWS.bfloat16(), VALUE_ROWS.bfloat16()
    exact, rounded = METHODS[name](k.double(), v.double()), METHODS[name](k, v)
    assert rounded.u.dtype == rounded.v.dtype == torch.float32
    torch.testing.assert_close(rounded.u, exact.u.float(), rtol=0, atol=0)
    torch.testing.assert_close(rounded.v, exact.v.float(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_zero_keys_pad_an_edit_without_changing_it(name: str):
    keys = torch.cat([KEY_ROWS, torch.zeros(EDITS, 2, IN)], dim=1)
    values = torch.cat([VALUE_ROWS, normal(EDITS, 2, OUT)], dim=1)
    expected = METHODS[name](KEY_ROWS, VALUE_ROWS).weight()
    assert_same(METHODS[name](keys, values).weight(), expected)


def test_tokens_that_are_padding_do_not_change_an_ultraedit():
    real = torch.tensor([[True] * KEYS + [False] * 2] * EDITS)
    keys = torch.cat([KEY_ROWS, torch.full((EDITS, 2, IN), torch.nan)], dim=1)
    values = torch.cat([VALUE_ROWS, normal(EDITS, 2, OUT)], dim=1)
    expected = METHODS["ultraedit"](KEY_ROWS, VALUE_ROWS).weight()
    assert_same(ultraedit_delta(keys, values, NORMALISER, LR, real).weight(), expected)


def test_rome_gives_the_change_at_the_key():
    delta = METHODS["rome"](KEY_ROWS, VALUE_ROWS)
    assert_same(delta(KEY_ROWS[:, :1]).squeeze(1), VALUE_ROWS[:, 0])


def test_alphaedit_changes_nothing_in_the_protected_directions():
    change = METHODS["alphaedit"](KEY_ROWS[0], VALUE_ROWS[0]).weight() @ NULL_SPACE.protected
    assert change.abs().max() < 1e-14


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_share_rule_does_not_depend_on_the_scale(scale: float):
    assert NullSpace.of_share(SECOND_MOMENT * scale, 0.01).dimension == 3


def test_a_second_moment_of_too_few_tokens_is_refused():
    few = second_moment_of(normal(IN - 2, IN))
    with pytest.raises(EditorError, match=r"9 inputs is not positive definite; .*more tokens or"):
        Factor.of(few)


@pytest.mark.parametrize("make", [Factor.of, lambda c: NullSpace.of_share(c, 0.01)])
def test_a_second_moment_that_is_not_finite_is_refused(make: Callable[[Tensor], object]):
    broken = SECOND_MOMENT.clone()
    broken[0, 0] = torch.inf
    with pytest.raises(EditorError, match="second moment holds values that are not finite"):
        make(broken)


def test_a_share_that_leaves_no_direction_is_refused():
    with pytest.raises(EditorError, match=r"all 9 directions are needed.*larger share eta"):
        NullSpace.of_share(torch.eye(IN), 0.01)


def test_rome_refuses_a_key_that_is_orthogonal_to_the_direction_and_names_the_edit():
    key = KEY_ROWS[:, 0].clone()
    key[1] -= key[1] @ KEY_ROWS[1, 1] / KEY_ROWS[1, 1].square().sum() * KEY_ROWS[1, 1]
    with pytest.raises(EditError, match=r"^edit 1 \(one of 1 of 3 edits\): .*orthogonal"):
        rome_delta(KEY_ROWS[:, 1:2], key[:, None], VALUE_ROWS[:, :1], None)
    with pytest.raises(EditError, match=r"^this edit: .*orthogonal"):
        rome_delta(KEY_ROWS[0, 1:2], torch.zeros(1, IN), VALUE_ROWS[0, :1], None)


def test_rome_refuses_keys_that_are_not_finite():
    keys = KEY_ROWS[:, :2].clone()
    keys[2, 0, 0] = torch.nan
    with pytest.raises(EditError, match=r"^edit 2 \(one of 1 of 3 edits\): .*not finite"):
        rome_delta(keys, keys, VALUE_ROWS[:, :2], FACTOR)


@of_every_method
def test_values_that_are_not_finite_are_refused(name: str):
    values = VALUE_ROWS.clone()
    values[2, 0] = torch.nan
    with pytest.raises(EditError, match=r"^edit 2 \(one of 1 of 3 edits\): .*not finite"):
        METHODS[name](KEY_ROWS, values)


@pytest.mark.parametrize("name", ["memit", "alphaedit", "ultraedit"])
def test_keys_that_are_not_finite_are_refused(name: str):
    keys = KEY_ROWS.clone()
    keys[2, 0, 0] = torch.nan
    with pytest.raises(EditError, match=r"^edit 2 \(one of 1 of 3 edits\): "):
        METHODS[name](keys, VALUE_ROWS)


def test_statistics_do_not_depend_on_how_tokens_are_cut_into_blocks():
    z = 1e3 + normal(40, 6)
    whole, cut = Normaliser.empty(6).with_rows(z), Normaliser.empty(6)
    for block in z.split([1, 0, 30, 9]):
        cut = cut.with_rows(block)
    assert whole.count == cut.count == 40
    torch.testing.assert_close(cut.mean, z.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(cut.squares, whole.squares, rtol=1e-10, atol=0)
    torch.testing.assert_close(cut.std, z.std(0), rtol=1e-10, atol=0)


def test_a_normaliser_of_one_token_is_refused():
    with pytest.raises(EditorError, match="seen 1 tokens; expected at least 2"):
        Normaliser.empty(6).with_rows(normal(1, 6)).normalise(normal(1, 6))


def test_a_unit_that_was_constant_normalises_to_zero():
    z = normal(30, 3)
    z[:, 1], z[:, 2] = 0, 0.1  # a ReLU that never fired, and a constant
    statistics = Normaliser.empty(3).with_rows(z[:7]).with_rows(z[7:])
    assert statistics.normalise(z + 1)[:, 1:].abs().max() == 0
    assert statistics.normalise(z + 1)[:, 0].abs().max() > 0
