"""Layers that no edit reaches run once, and nothing else changes: an edited VLM that starts from
kept hidden states predicts and captures what a whole forward gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from closeness import assert_close
from reuse import (
    FORMS,
    NAMES,
    PLACES,
    Place,
    build,
    deltas_at,
    first_layer,
    no_reuse,
    runs_of_layers,
    sites_at,
)
from tiny import MIXED, SEEN, TEXT_ONLY, adapter_of, assert_identical, random_image
from torch import Tensor

from mmedit.adapters import adapter_for
from mmedit.adapters.inputs import PaddingSide
from mmedit.cases import Example
from mmedit.deltas import Delta, Dense, LowRank
from mmedit.methods.ike.context import Context, Fact, InContextVLM
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Captured, Predictions
from mmedit.vlm.states import States

ANSWERS = (True, False, True)
every_place = pytest.mark.parametrize("place", PLACES)
a_family_of_each_form = pytest.mark.parametrize("family", FORMS, indirect=True)
WAYS: tuple[tuple[Any, int | None, PaddingSide], ...] = (
    (LowRank, len(MIXED), "left"),
    (Dense, None, "right"),
    (Dense, len(MIXED), "right"),
    (LowRank, None, "left"),
)
"""Kinds of deltas, separate or for all rows, and the side of the padding."""


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def loaded(family: str) -> NetworkVLM:
    return build(family)


@pytest.fixture
def model(loaded: NetworkVLM) -> NetworkVLM:
    """The same network in every test of a family, with nothing kept yet."""
    return NetworkVLM(loaded.adapter)


def padded(vlm: NetworkVLM, side: PaddingSide) -> NetworkVLM:
    return NetworkVLM(vlm.adapter, padding_side=side)


def assert_same_capture(found: Captured, expected: Captured) -> None:
    assert torch.equal(found.nll, expected.nll)
    for site in expected.x:
        there = expected.delta[site].ne(0).any(-1)
        assert there.any()
        assert torch.equal(found.x[site][there], expected.x[site][there])
        assert torch.equal(found.delta[site], expected.delta[site])


def loss_of(predictions: Predictions) -> Tensor:
    return answer_nll(predictions.logits, predictions.target, predictions.is_answer).sum()


def learnable(deltas: dict[str, Delta]) -> tuple[dict[str, Delta], list[Tensor]]:
    """Return copies of low-rank deltas that gradients reach, and their tensors."""
    made: dict[str, Delta] = {}
    for site, delta in deltas.items():
        tensors = {n: t.clone().requires_grad_() for n, t in delta.tensors().items()}
        made[site] = LowRank(tensors["u"], tensors["v"])
    return made, [tensor for delta in made.values() for tensor in delta.tensors().values()]


# What an edited VLM gives


@torch.no_grad()
@every_place
def test_an_edited_vlm_predicts_bit_for_bit_what_a_whole_forward_does(
    model: NetworkVLM, family: str, place: Place
):
    sites = sites_at(model, place)
    k, layers = first_layer(model, sites), len(model.adapter.layers)
    for kind, edits, side in WAYS if family == "blip2" else WAYS[:2]:
        base = padded(model, side)
        edited = base.with_deltas(deltas_at(model, sites, kind=kind, edits=edits))
        with no_reuse():
            expected, before = edited.predict(MIXED), base.predict(MIXED)
        with runs_of_layers(base) as runs:
            assert_identical(base.predict(MIXED), before)
        assert runs == [1] * layers
        for _ in range(2):
            with runs_of_layers(base) as runs:
                assert_identical(edited.predict(MIXED), expected)
        assert runs == [0] * k + [1] * (layers - k)
        assert not torch.equal(expected.logits, before.logits)


@torch.no_grad()
def test_an_edit_of_the_default_sites_starts_where_the_base_model_passed_them(vlm: NetworkVLM):
    fresh = NetworkVLM(vlm.adapter)
    sites = fresh.sites("language")
    k = first_layer(fresh, sites)
    assert 0 < k < len(fresh.adapter.layers)
    fresh.predict(MIXED)
    with runs_of_layers(fresh) as runs:
        fresh.with_deltas(deltas_at(fresh, sites)).predict(MIXED)
    assert runs == [0] * k + [1] * (len(runs) - k)


@torch.no_grad()
def test_a_forward_that_ended_at_a_layer_is_not_run_again_for_an_edit_behind_it(model: NetworkVLM):
    """As a memory of edits asks: what the layer gives decides which edit acts there."""
    site = model.layer_sites[0]
    whole = model.with_deltas(deltas_at(model, [site])).predict(MIXED)
    fresh = NetworkVLM(model.adapter)
    with runs_of_layers(fresh) as runs:
        fresh.observe(MIXED, [], after=[1])
        found = fresh.with_deltas(deltas_at(fresh, [site])).predict(MIXED)
    assert runs == [1] * len(runs)
    assert_identical(found, whole)


@every_place
def test_capturing_from_kept_states_gives_what_a_whole_forward_does(
    model: NetworkVLM, family: str, place: Place
):
    sites = sites_at(model, place)
    k, layers = first_layer(model, sites), len(model.adapter.layers)
    for kind, edits, side in WAYS if family == "blip2" else WAYS[:1]:
        base = padded(model, side)
        edited = base.with_deltas(deltas_at(model, sites, kind=kind, edits=edits))
        with no_reuse():
            expected = [vlm.capture(MIXED, sites) for vlm in (base, edited)]
        base.predict(MIXED)
        for vlm, whole in zip((base, edited), expected, strict=True):
            vlm.capture(MIXED, sites)
            with runs_of_layers(base) as runs:
                assert_same_capture(vlm.capture(MIXED, sites), whole)
            assert runs == [0] * k + [1] * (layers - k)


@a_family_of_each_form
@torch.no_grad()
def test_an_edited_vlm_that_is_asked_first_keeps_the_states_for_the_next(model: NetworkVLM):
    sites = sites_at(model, "last")
    k = len(model.adapter.layers) - 1
    first, second = (
        model.with_deltas(deltas_at(model, sites, scale=scale)) for scale in (0.3, 0.1)
    )
    with no_reuse():
        expected = [vlm.predict(MIXED) for vlm in (first, second, model)]
    runs = []
    for vlm, whole in zip((first, second, model), expected, strict=True):
        with runs_of_layers(model) as counted:
            assert_identical(vlm.predict(MIXED), whole)
        runs.append(counted)
    assert runs[0] == [1] * (k + 1)
    assert runs[1] == [0] * k + [1]
    assert runs[2][-1] == 1


@a_family_of_each_form
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_that_changes_nothing_leaves_every_digit(family: str, dtype: torch.dtype):
    model = build(family)
    model.adapter.network.to(dtype)
    base = NetworkVLM(adapter_for(model.adapter.network.config)(*parts(model)))
    before = base.predict(MIXED)
    for place in PLACES:
        for edits in (None, len(MIXED)):
            idle = deltas_at(base, sites_at(base, place), edits=edits, scale=0)
            assert_identical(base.with_deltas(idle).predict(MIXED), before)


def parts(vlm: NetworkVLM) -> tuple[Any, Any]:
    return vlm.adapter.network, vlm.adapter.processor


@a_family_of_each_form
@pytest.mark.parametrize("place", ["three", "last", "head"])
def test_gradients_of_deltas_are_those_of_a_whole_forward(model: NetworkVLM, place: Place):
    drawn = deltas_at(model, sites_at(model, place), edits=len(MIXED))
    gradients = []
    for is_whole in (True, False):
        deltas, tensors = learnable(drawn)
        model.predict(MIXED)
        edited = model.with_deltas(deltas)
        if is_whole:
            with no_reuse():
                loss = loss_of(edited.predict(MIXED))
        else:
            loss = loss_of(edited.predict(MIXED))
        gradients.append(torch.autograd.grad(loss, tensors))
    for whole, found in zip(*gradients, strict=True):
        assert whole.any()
        torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-6)


@a_family_of_each_form
@torch.no_grad()
@pytest.mark.parametrize("where", ["bridge", "vision"])
def test_an_edit_before_the_language_model_never_starts_from_kept_states(
    model: NetworkVLM, where: Any
):
    sites = model.sites(where)
    if not sites:
        pytest.skip(f"its {where} has no Linear, so there is nothing to edit")
    deltas = deltas_at(model, (*sites, *sites_at(model, "last")))
    edited = model.with_deltas(deltas)
    with no_reuse():
        expected = edited.predict(MIXED)
    model.predict(MIXED)
    for _ in range(2):
        with runs_of_layers(model) as runs:
            assert_identical(edited.predict(MIXED), expected)
        assert runs == [1] * len(runs)


# Which states may stand in


def shown(examples: Sequence[Example], seed: int) -> list[Example]:
    """Return the same questions about other images."""
    return [
        example if example.image is None else replace(example, image=random_image(seed + number))
        for number, example in enumerate(examples)
    ]


@a_family_of_each_form
@torch.no_grad()
def test_batches_that_differ_in_their_images_alone_share_no_states(model: NetworkVLM):
    edited = model.with_deltas(deltas_at(model, sites_at(model, "last")))
    others = shown(MIXED, seed=70)
    with no_reuse():
        expected = edited.predict(others)
    model.predict(shown(MIXED, seed=50))
    with runs_of_layers(model) as runs:
        assert_identical(edited.predict(others), expected)
    assert runs == [1] * len(runs)


@torch.no_grad()
def test_the_same_rows_in_another_order_or_padded_on_the_other_side_share_no_states(tiny_vlm):
    deltas = deltas_at(tiny_vlm, sites_at(tiny_vlm, "last"))
    tiny_vlm.predict(MIXED)
    left = NetworkVLM(tiny_vlm.adapter, deltas=deltas, frozen=tiny_vlm.frozen, padding_side="left")
    for vlm, rows in ((tiny_vlm.with_deltas(deltas), MIXED[::-1]), (left, MIXED)):
        with runs_of_layers(tiny_vlm) as runs:
            vlm.predict(rows)
        assert runs == [1, 1, 1]


@a_family_of_each_form
@torch.no_grad()
def test_a_context_is_read_whole_and_not_kept(model: NetworkVLM):
    edited = model.with_deltas(deltas_at(model, sites_at(model, "last")))
    in_context = [replace(example, context="New Fact: yes no\nPrompt: ") for example in MIXED]
    with no_reuse():
        expected = edited.predict(in_context)
    for vlm in (model, edited, edited):
        with runs_of_layers(model) as runs:
            found = vlm.predict(in_context)
        assert runs == [1] * len(runs)
    assert_identical(found, expected)
    assert model.frozen.states.bytes_used == 0


@torch.no_grad()
def test_kept_states_are_bounded_in_bytes_and_the_oldest_go_first(tiny_vlm: NetworkVLM):
    batches = [[example] for example in (*SEEN, TEXT_ONLY)]
    edited = tiny_vlm.with_deltas(deltas_at(tiny_vlm, sites_at(tiny_vlm, "last")))
    edited.predict(batches[0])
    one = tiny_vlm.frozen.states.bytes_used
    bound = one * 2
    tiny_vlm.frozen.states = States(tiny_vlm.adapter, memory_bytes=bound)
    for batch in batches:
        edited.predict(batch)
        assert 0 < tiny_vlm.frozen.states.bytes_used <= max(bound, one)
    with runs_of_layers(tiny_vlm) as runs:
        edited.predict(batches[-1])
    assert runs == [0, 0, 1]
    with runs_of_layers(tiny_vlm) as runs:
        edited.predict(batches[0])
    assert runs == [1, 1, 1]


@torch.no_grad()
def test_states_of_mixed_precision_stand_in_for_no_others(tiny_vlm: NetworkVLM):
    edited = tiny_vlm.with_deltas(deltas_at(tiny_vlm, sites_at(tiny_vlm, "last")))
    with no_reuse():
        exact = edited.predict(MIXED)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = edited.predict(MIXED)
    tiny_vlm.predict(MIXED)
    with torch.autocast("cpu", torch.bfloat16):
        for expected_runs in ([1, 1, 1], [0, 0, 1]):
            with runs_of_layers(tiny_vlm) as runs:
                assert_identical(edited.predict(MIXED), mixed)
            assert runs == expected_runs
    assert_identical(edited.predict(MIXED), exact)


@torch.no_grad()
def test_layers_that_read_the_keys_of_earlier_ones_are_never_skipped(monkeypatch):
    model = build("llava")
    config = model.adapter.network.get_decoder().config
    deltas = deltas_at(model, sites_at(model, "last"))
    with no_reuse():
        expected = model.with_deltas(deltas).predict(MIXED)
    layers = model.adapter.layers
    monkeypatch.setattr(config, "num_kv_shared_layers", 1, raising=False)
    shared = NetworkVLM(type(model.adapter)(*parts(model)))
    assert shared.adapter.layers == ()
    shared.predict(MIXED)
    with runs_of_layers(model) as runs:
        found = shared.with_deltas(deltas).predict(MIXED)
    assert runs == [1] * len(layers)
    for row in range(len(MIXED)):
        assert_close(found.logits[row], expected.logits[row])


# What is left behind


class Broken(Exception):
    """Raised inside the network by a test."""


def breaks(*_: object) -> None:
    raise Broken


@torch.no_grad()
@pytest.mark.parametrize("offloaded", [False, True])
def test_an_error_inside_the_network_leaves_every_layer_as_it_was(
    tiny_vlm: NetworkVLM, offloaded: bool
):
    layers = adapter_of(tiny_vlm).layers
    edited = tiny_vlm.with_deltas(deltas_at(tiny_vlm, sites_at(tiny_vlm, "last")))
    expected = edited.predict(MIXED)
    try:
        if offloaded:  # Accelerate replaces `forward` of the layers too
            for layer in layers:
                add_hook_to_module(layer, ModelHook())
        before = [layer.__dict__.get("forward") for layer in layers]
        assert all((forward is not None) == offloaded for forward in before)
        hook = layers[-1].get_submodule("self_attn").register_forward_pre_hook(breaks)
        for ask in (edited.predict, lambda rows: edited.answer(rows, max_new_tokens=2)):
            with pytest.raises(Broken):
                ask(MIXED)
            assert [layer.__dict__.get("forward") for layer in layers] == before
        hook.remove()
        assert not any(layer._forward_hooks for layer in layers)
        assert_identical(edited.predict(MIXED), expected)
    finally:
        for layer in layers:
            remove_hook_from_module(layer)


# Logits about answers alone


def assert_answers(found: Predictions, whole: Predictions) -> None:
    """Assert that rows of ANSWERS hold the answers of `whole`, and the others all of it."""
    for row, is_answer_only in enumerate(ANSWERS):
        expected = whole.is_answer[row] if is_answer_only else whole.is_text[row]
        assert_close(found.logits[row][found.is_text[row]], whole.logits[row][expected])
        assert torch.equal(found.target[row][found.is_text[row]], whole.target[row][expected])
        assert found.is_answer[row].sum() == whole.is_answer[row].sum()
        if is_answer_only:
            assert torch.equal(found.is_answer[row], found.is_text[row])
            assert found.is_answer[row].int().argmin() in (0, whole.is_answer[row].sum())
        assert not found.logits[row][int(found.is_text[row].sum()) + 1 :].any()


@a_family_of_each_form
@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_about_answers_alone_are_those_of_the_full_prediction(
    model: NetworkVLM, side: PaddingSide
):
    base = padded(model, side)
    for vlm in (base, base.with_deltas(deltas_at(base, sites_at(base, "last"), edits=3))):
        found = vlm.predict(MIXED, answers_only=ANSWERS)
        assert_answers(found, vlm.predict(MIXED))


@a_family_of_each_form
@pytest.mark.parametrize("place", ["last", "head"])
def test_gradients_through_answers_alone_are_those_of_the_full_prediction(
    model: NetworkVLM, place: Place
):
    deltas, tensors = learnable(deltas_at(model, sites_at(model, place), edits=len(MIXED)))
    edited = model.with_deltas(deltas)
    full, found = (
        torch.autograd.grad(loss_of(edited.predict(MIXED, answers_only=answers)), tensors)
        for answers in (None, ANSWERS)
    )
    for one, other in zip(found, full, strict=True):
        assert_close(one, other, passes=2)


@a_family_of_each_form
@torch.no_grad()
def test_in_context_edits_give_logits_about_answers_alone_too(model: NetworkVLM):
    facts = tuple(Context((Fact(f"New Fact: {text}\n", ()),), 0) for text in ("yes", "no", "blue"))
    for contexts in (facts[0], facts):
        edited = InContextVLM(model, contexts)
        found = edited.predict(MIXED, answers_only=ANSWERS)
        assert_answers(found, edited.predict(MIXED))
