"""Edits work alike on weights that are offloaded, quantised or in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import pytest
import tiny
import tiny_families
import torch
from placed import half_on_disk
from tiny import SEEN, TEXT_ONLY
from torch import nn

from mmedit.cases import Example
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.deltas import Delta, Dense, LowRank, fold, linear_at
from mmedit.errors import ModelError
from mmedit.methods.ft import FT, FTConfig
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.vlm.interface import VLM
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

MIXED = (SEEN[0], TEXT_ONLY, SEEN[1])
# BLIP-2's query tokens are a parameter outside its modules; Accelerate places them too.
pytestmark = pytest.mark.filterwarnings("ignore:The following device_map keys do not match")


@pytest.fixture(scope="module")
def requests_() -> list[Example]:
    return [case.request for case in easyvqa.EasyVQA().load("test", limit=4)]


def low_rank(vlm: NetworkVLM, sites: tuple[str, ...]) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(0)
    return {
        site: LowRank(*(torch.randn(2, n, generator=generator) * 0.3 for n in vlm.shape(site)))
        for site in sites
    }


# Offloaded


@pytest.fixture(params=["blip2", "llava", "qwen2_5_vl", "fast_vlm"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "blip2":
        return tiny.save_model(tmp_path / "model")
    return tiny_families.save_family(request.param, tmp_path / "model")


@pytest.fixture
def both(folder: Path, tmp_path: Path) -> tuple[NetworkVLM, NetworkVLM]:
    """The model in memory, and again with room for half of it, the rest on disk."""
    whole = load_vlm(folder)
    offloaded = half_on_disk(folder, tmp_path / "offloaded", whole)
    assert any(p.is_meta for p in offloaded.adapter.network.parameters())
    return whole, offloaded


def test_a_network_half_on_disk_answers_and_is_edited_as_one_in_memory(both):
    whole, offloaded = both
    assert offloaded.device == torch.device("cpu")
    assert torch.equal(offloaded.predict(MIXED).logits, whole.predict(MIXED).logits)
    sites = tuple(s for where in ("language", "bridge", "vision") for s in whole.sites(where))
    deltas = low_rank(whole, sites)
    first, second = whole.with_deltas(deltas), offloaded.with_deltas(deltas)
    assert torch.equal(second.predict(MIXED).logits, first.predict(MIXED).logits)
    assert second.generate(MIXED, max_new_tokens=3) == first.generate(MIXED, max_new_tokens=3)
    assert not torch.equal(second.predict(MIXED).logits, whole.predict(MIXED).logits)


def test_a_network_half_on_disk_is_captured_and_read_as_one_in_memory(both):
    whole, offloaded = both
    assert offloaded.identity == whole.identity
    sites = whole.sites("language")
    first, second = (vlm.capture(MIXED, sites) for vlm in both)
    for site in sites:
        assert torch.equal(offloaded.weight(site), whole.weight(site))
        assert torch.equal(second.x[site], first.x[site])
        assert torch.equal(second.delta[site], first.delta[site])


def test_fine_tuning_works_on_a_network_half_on_disk(both):
    whole, _ = both
    editor = FT(FTConfig(sites=whole.sites("language")[-1:], steps=3, lr=1e-2))
    first, second = (editor.apply(vlm, [SEEN[0]]).predict([SEEN[0]]).logits for vlm in both)
    # In memory, W + ΔW is one matrix; on disk, ΔW stands beside W.
    torch.testing.assert_close(second, first, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("family", ["blip2", "instructblip", "llava_next", "llava_onevision"])
def test_parameters_beside_the_modules_are_read_from_disk_too(family: str, tmp_path: Path):
    """The forward of no module reads query tokens and the line feed of tiles back from disk."""
    folder = tmp_path / "model"
    if family == "blip2":
        tiny.save_model(folder)
    else:
        tiny_families.save_family(family, folder)
    whole = load_vlm(folder)
    on_disk = load_vlm(folder, max_memory={"cpu": 1}, offload_folder=tmp_path / "offloaded")
    assert torch.equal(on_disk.predict(MIXED).logits, whole.predict(MIXED).logits)
    deltas = low_rank(whole, whole.sites("bridge"))
    first, second = (vlm.with_deltas(deltas).predict(SEEN).logits for vlm in (whole, on_disk))
    assert torch.equal(first, second)


# Half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_edit_too_small_for_half_precision_weights_still_acts(requests_, dtype: torch.dtype):
    """Written into the weights, the edit is rounded away to the last bit. Beside them, it changes
    the answers as float64 says that it should, but for the rounding of half precision.
    """
    vlm = load_vlm("embedded", dtype=dtype)
    deltas = step_below_rounding(vlm, requests_[0], vlm.sites("language"))
    for site, delta in deltas.items():
        weight = linear_at(vlm.adapter.network, site).weight
        assert torch.equal(fold(weight, delta), weight)
        assert delta.weight().any()
    exact = in_float64(vlm, {})
    before, after = vlm.predict(requests_), vlm.with_deltas(deltas).predict(requests_)
    is_text = before.is_text
    found = (after.logits.double() - before.logits.double())[is_text]
    expected = in_float64(vlm, deltas).predict(requests_).logits - exact.predict(requests_).logits
    # It is 0.9 on two kinds of processors. Rounding of half precision has no direction.
    assert torch.cosine_similarity(found.flatten(), expected[is_text].flatten(), dim=0) > 0.5


def step_below_rounding(
    vlm: NetworkVLM, request: Example, sites: tuple[str, ...]
) -> dict[str, Dense]:
    """A step against the gradient that changes each weight by less than half of its spacing."""
    captured = vlm.capture([request], sites)
    deltas = {}
    for site in sites:
        size = linear_at(vlm.adapter.network, site).weight.abs()
        below = torch.nextafter(size, torch.zeros_like(size))
        gradient = captured.delta[site][0].float().T @ captured.x[site][0].float()
        deltas[site] = Dense(-gradient.sign() * 0.49 * (size.float() - below.float()))
    return deltas


def in_float64(vlm: NetworkVLM, deltas: Mapping[str, Delta]) -> NetworkVLM:
    """The same weights in float64, with the deltas added to them."""
    network = deepcopy(vlm.adapter.network).double()
    for site, delta in deltas.items():
        linear_at(network, site).weight.data += delta.weight().double()
    return NetworkVLM(type(vlm.adapter)(network, vlm.adapter.processor))


# Quantised


@pytest.fixture(params=["8bit", "4bit"])
def quantised(request: pytest.FixtureRequest) -> NetworkVLM:
    pytest.importorskip("bitsandbytes", reason="the extra `quantized` is not installed")
    return load_vlm("embedded", quantization=request.param)


def test_a_quantised_network_is_edited_as_it_is(quantised: NetworkVLM, vlm, requests_):
    site = quantised.sites("language")[-1]
    linear = linear_at(quantised.adapter.network, site)
    assert type(linear) is not nn.Linear
    weight = quantised.weight(site)
    assert weight.shape == quantised.shape(site)
    assert (weight - vlm.weight(site)).abs().max() < 0.15 * vlm.weight(site).abs().max()
    before, fingerprint = quantised.predict(requests_), quantised.identity.weights
    edited = FT(FTConfig(sites=(site,), steps=8, lr=1e-3)).apply(quantised, requests_[:1])
    assert nll(edited, requests_[:1]) < nll(quantised, requests_[:1])
    assert torch.equal(quantised.predict(requests_).logits, before.logits)
    assert torch.equal(quantised.weight(site), weight)
    assert quantised.identity.weights == fingerprint != vlm.identity.weights


def test_the_gradient_of_a_quantised_network_points_where_the_plain_one_does(
    quantised: NetworkVLM, vlm: NetworkVLM, requests_
):
    sites = vlm.sites("language")
    found, wanted = quantised.capture(requests_, sites), vlm.capture(requests_, sites)
    for site in sites:
        pair = (found.delta[site].float().flatten(), wanted.delta[site].flatten())
        assert torch.cosine_similarity(*pair, dim=0) > 0.85


def test_quantisation_without_bitsandbytes_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setattr("mmedit.vlm.loading.find_spec", lambda name: None)
    with pytest.raises(ModelError) as raised:
        load_vlm("embedded", quantization="4bit")
    assert str(raised.value) == (
        "embedded cannot be loaded: 4bit weights need bitsandbytes, which is not installed: "
        "pip install 'mmedit[quantized]'"
    )


def nll(vlm: VLM, examples: list[Example]) -> float:
    predictions = vlm.predict(examples)
    return answer_nll(predictions.logits, predictions.target, predictions.is_answer).mean().item()
