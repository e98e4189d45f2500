"""Deltas in a network during one call: whole matrices are folded in float32, all others are added
beside the weight.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from closeness import assert_close
from tiny import MIXED, SEEN
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmedit.cases import Example
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.deltas import Delta, Dense, LowRank, compose, linear_at
from mmedit.methods.ft import FT, FTConfig
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.vlm import acting
from mmedit.vlm.acting import added
from mmedit.vlm.network import NetworkVLM

OUT, IN = 24, 40
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear"}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def linear(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    made = nn.Linear(IN, OUT)
    made.weight.data, made.bias.data = normal(OUT, IN, seed=8), normal(OUT, seed=9)
    return nn.Sequential(made).to(dtype).requires_grad_(False)


def through(network: nn.Module, delta: Delta, x: Tensor) -> Tensor:
    with added(network, {"0": delta}, rows=len(x)):
        return network(x)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.count += func.name().partition(".")[0] in PRODUCTS
        return func(*args, **kwargs or {})


def products(call: Callable[[], object]) -> int:
    with Products() as counted:
        call()
    return counted.count


def unfolded(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Tensor]) -> Tensor:
    with monkeypatch.context() as patched:
        patched.setattr(acting, "takes_folded", lambda linear, change: False)
        return call()


@pytest.fixture
def requests_() -> list[Example]:
    return [case.request for case in easyvqa.EasyVQA().load("test", limit=3)]


def dense_at(vlm: NetworkVLM, sites: Sequence[str], share: float = 0.02) -> dict[str, Delta]:
    return {
        site: Dense(normal(*vlm.shape(site), seed=seed) * share) for seed, site in enumerate(sites)
    }


def low_rank(vlm: NetworkVLM, site: str, rank: int, seed: int = 0, size: float = 1.0) -> LowRank:
    u, v = (normal(rank, n, seed=seed) * size for n in vlm.shape(site))
    return LowRank(u, v)


def really_changed(vlm: NetworkVLM) -> NetworkVLM:
    """The same VLM over a copy of the network, whose weights hold the deltas."""
    adapter = deepcopy(vlm.adapter)
    for site, delta in vlm.deltas.items():
        linear_at(adapter.network, site).weight.data += delta.weight()
    return NetworkVLM(adapter)


# One product in place of two


def test_a_whole_matrix_costs_no_product_of_its_own():
    network, x = linear(), normal(2, 5, IN)
    assert products(lambda: through(network, Dense(normal(OUT, IN)), x)) == 1
    assert products(lambda: through(network, LowRank(normal(2, OUT), normal(2, IN)), x)) == 3


def test_folded_answers_as_unfolded(monkeypatch):
    network, delta, x = linear(), Dense(normal(OUT, IN)), normal(2, 5, IN)
    found = through(network, delta, x)
    expected = unfolded(monkeypatch, lambda: through(network, delta, x))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * expected.abs().max().item())
    torch.testing.assert_close(found, network(x) + x @ delta.change.mT)


def test_a_whole_matrix_beside_separate_edits_is_folded_and_they_are_added(monkeypatch):
    network, x = linear(), normal(2, 5, IN)
    both = compose(Dense(normal(OUT, IN)), LowRank(normal(2, 3, OUT), normal(2, 3, IN, seed=1)))
    expected = unfolded(monkeypatch, lambda: through(network, both, x))
    assert_close(through(network, both, x), expected)
    assert products(lambda: through(network, both, x)) == 3


def test_a_change_of_nothing_leaves_every_bit():
    network, x = linear(), normal(2, 5, IN)
    kept = linear_at(network, "0").weight
    kept.data = torch.empty(OUT * IN + 1)[1:].view(OUT, IN).copy_(kept)  # at an odd address
    assert torch.equal(through(network, Dense(torch.zeros(OUT, IN)), x), network(x))


def test_an_edit_of_nothing_leaves_every_bit_of_a_vlm(vlm: NetworkVLM, requests_):
    nothing = {site: Dense(torch.zeros(vlm.shape(site))) for site in vlm.sites("language")}
    found = vlm.with_deltas(nothing).predict(requests_).logits
    assert torch.equal(found, vlm.predict(requests_).logits)


# When it is made, and how long it lives


def test_the_folded_weight_is_made_once_and_goes_with_its_delta(monkeypatch):
    made: list[weakref.ref[Tensor]] = []

    def noted(weight: Tensor, delta: Delta) -> Tensor:
        made.append(weakref.ref(total := weight + delta.weight()))
        return total

    monkeypatch.setattr(acting, "fold", noted)
    network, delta, x = linear(), Dense(normal(OUT, IN)), normal(2, 5, IN)
    first = through(network, delta, x)
    assert torch.equal(through(network, delta, x), first)
    assert len(made) == 1
    del delta
    gc.collect()
    assert made[0]() is None


def test_one_delta_acts_on_each_of_two_networks():
    first, second, delta, x = linear(), linear(), Dense(normal(OUT, IN)), normal(2, 5, IN)
    linear_at(second, "0").weight.data *= 2
    for network in (first, second, first):
        assert_close(through(network, delta, x), network(x) + x @ delta.change.mT)


def test_new_numbers_in_a_weight_or_a_delta_are_seen():
    network, delta, x = linear(), Dense(normal(OUT, IN)), normal(2, 5, IN)
    weight = linear_at(network, "0").weight
    for write in (
        lambda: weight.mul_(2),
        lambda: delta.change.mul_(3),
        lambda: setattr(weight, "data", normal(OUT, IN, seed=4)),
    ):
        through(network, delta, x)
        write()
        assert_close(through(network, delta, x), network(x) + x @ delta.change.mT)


def test_a_first_call_in_inference_mode_leaves_later_gradients_possible():
    network, delta, x = linear(), Dense(normal(OUT, IN)), normal(2, 5, IN)
    with torch.inference_mode():
        expected = through(network, delta, x)
    found = through(network, delta, x.requires_grad_())
    found.sum().backward()
    assert torch.equal(found, expected)


# The network


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def is_clean(network: nn.Module) -> bool:
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return not any(module._forward_hooks or "forward" in vars(module) for module in linears)


def test_the_network_is_as_it_was_after_a_call_and_after_an_error_in_one(
    tiny_vlm: NetworkVLM, monkeypatch
):
    network = tiny_vlm.adapter.network
    before = state(network)
    edited = tiny_vlm.with_deltas(dense_at(tiny_vlm, tiny_vlm.sites("language")))
    edited.predict(MIXED)
    assert is_clean(network)

    def fail(*args: Any, **kwargs: Any) -> None:
        assert not is_clean(network)
        raise RuntimeError("the forward broke off")

    with monkeypatch.context() as patched:
        patched.setattr(type(network.language_model.lm_head), "forward", fail)
        with pytest.raises(RuntimeError, match="broke off"):
            edited.predict(MIXED)
    assert is_clean(network)
    assert all(torch.equal(before[name], now) for name, now in state(network).items())


@pytest.mark.parametrize("where", ["language", "bridge", "vision"])
def test_a_folded_edit_is_captured_as_on_a_network_with_that_weight(tiny_vlm: NetworkVLM, where):
    sites = tiny_vlm.sites(where)
    edited = tiny_vlm.with_deltas(dense_at(tiny_vlm, sites))
    found, expected = (vlm.capture(SEEN, sites) for vlm in (edited, really_changed(edited)))
    torch.testing.assert_close(found.nll, expected.nll, rtol=1e-5, atol=1e-5)
    for site in sites:
        torch.testing.assert_close(found.x[site], expected.x[site], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.delta[site], expected.delta[site], rtol=1e-5, atol=1e-5)


# What is not folded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adds_the_edit_beside_the_weight_bit_for_bit(dtype):
    network, delta, x = linear(dtype), Dense(normal(OUT, IN)), normal(2, 5, IN).to(dtype)
    beside = network(x) + (x.float().reshape(1, -1, IN) @ delta.change.mT).reshape(2, 5, OUT)
    assert torch.equal(through(network, delta, x), beside.to(dtype))


def test_products_of_lower_precision_do_not_round_an_edit_away():
    network, x = linear(), normal(2, 5, IN)
    small = Dense(normal(OUT, IN) * 1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert products(lambda: through(network, small, x)) == 2
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert products(lambda: through(network, small, x)) == 2
    finally:
        torch.set_float32_matmul_precision(precision)


def test_a_linear_with_a_forward_of_its_own_keeps_it():
    network, delta, x = linear(), Dense(normal(OUT, IN)), normal(2, 5, IN)
    own = linear_at(network, "0")
    vars(own)["forward"] = lambda x: F.linear(x, own.weight, own.bias) + 1  # Accelerate's, say
    expected = network(x) + x @ delta.change.mT
    assert_close(through(network, delta, x), expected)
    assert "forward" in vars(own)


# Gradients


def test_the_gradient_of_a_change_is_that_of_the_weight(tiny_vlm: NetworkVLM):
    (site, *_) = tiny_vlm.sites("language")
    before = tiny_vlm.with_deltas(dense_at(tiny_vlm, [site]))
    change = torch.zeros(tiny_vlm.shape(site), requires_grad=True)
    made = before.with_deltas({site: Dense(change)}).predict(SEEN)
    answer_nll(made.logits, made.target, made.is_answer).sum().backward()
    changed = really_changed(before)
    weight = linear_at(changed.adapter.network, site).weight.requires_grad_()
    made = changed.predict(SEEN)
    answer_nll(made.logits, made.target, made.is_answer).sum().backward()
    assert change.grad is not None
    assert weight.grad is not None
    assert_close(change.grad, weight.grad, passes=2)


def test_the_second_edit_of_ft_descends_as_on_a_network_that_holds_the_first(
    tiny_vlm: NetworkVLM,
):
    sites = tiny_vlm.sites("language")
    ft = FT(FTConfig(sites=sites, steps=3, lr=1e-3, weight_decay=0.0))
    first = ft.apply(tiny_vlm, [SEEN[0]])
    assert isinstance(first, NetworkVLM)
    second = ft.edit(first, [SEEN[1]]).deltas
    again = ft.edit(really_changed(first), [SEEN[1]]).deltas
    assert second is not None
    assert again is not None
    for site in sites:
        torch.testing.assert_close(second[site].weight(), again[site].weight(), rtol=0, atol=1e-5)


# Long sequences


def test_a_question_after_sixty_low_rank_edits_costs_the_products_of_the_base_model(
    vlm: NetworkVLM, requests_
):
    sites, edited, total = vlm.sites("language"), vlm, {}
    for seed in range(60):
        edit = {site: low_rank(vlm, site, 3, seed=seed, size=0.01) for site in sites}
        edited = edited.with_deltas(edit).merged()
        for site in sites:
            total[site] = total.get(site, 0) + edit[site].weight()
    assert isinstance(edited, NetworkVLM)
    assert {type(delta) for delta in edited.deltas.values()} == {Dense}
    assert len(edited.edits) == 1
    for site in sites:
        assert_close(edited.deltas[site].weight(), total[site])
    with torch.no_grad():
        vlm.predict(requests_)  # its image features are looked up from here on
        new = [[replace(r, prompt=f"{n} {r.prompt}") for r in requests_] for n in "12"]
        count = products(lambda: edited.predict(new[0]))
        assert count == products(lambda: vlm.predict(new[1]))
    assert_close(edited.predict(requests_).logits, really_changed(edited).predict(requests_).logits)


def test_a_growing_low_rank_edit_stays_so_where_it_cannot_be_folded(vlm: NetworkVLM):
    (site, *_) = vlm.sites("language")
    half = NetworkVLM(deepcopy(vlm.adapter))
    half.adapter.network.to(torch.bfloat16)
    edits = [low_rank(vlm, site, 10, seed=seed) for seed in range(3)]
    for found, kind in ((vlm, Dense), (half, LowRank)):
        for edit in edits:
            found = found.with_deltas({site: edit}).merged()
        assert type(found.deltas[site]) is kind


def test_a_merged_vlm_with_one_edit_keeps_it_as_it_is(vlm: NetworkVLM):
    (site, *_) = vlm.sites("language")
    edited = vlm.with_deltas({site: low_rank(vlm, site, 40)})
    assert edited.merged() is edited
