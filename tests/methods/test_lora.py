"""LoRA: adapters of separate edits, when an edit is done, and one adapter over a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MIXED, SEEN

from mmedit.cases import Example
from mmedit.deltas import Delta, LowRank
from mmedit.edits.loading import load_edit
from mmedit.methods.lora import Descent, LoRA, LoRAConfig
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.vlm.edit import DeltaChange, Edit
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM


def lora(**settings: Any) -> LoRA:
    return LoRA(LoRAConfig(**{"rank": 2, "lr": 1e-2, "steps": 3, "stop_loss": 0.0, **settings}))


def low_rank(deltas: Any) -> dict[str, LowRank]:
    """The deltas of a VLM or a change, all of them low-rank."""
    assert all(isinstance(delta, LowRank) for delta in deltas.values())
    return deltas


def edit_of(vlm: VLM, place: int = -1) -> DeltaChange:
    change = vlm.edits[place].change
    assert isinstance(change, DeltaChange)
    return change


def nll(vlm: VLM, requests: Sequence[Example]) -> torch.Tensor:
    predictions = vlm.predict(requests)
    return answer_nll(predictions.logits, predictions.target, predictions.is_answer)


def assert_equal(found: dict[str, Delta], expected: dict[str, Delta], atol: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for site, delta in expected.items():
        assert delta.weight().abs().max() > 100 * atol
        torch.testing.assert_close(found[site].weight(), delta.weight(), rtol=1e-4, atol=atol)


def as_network(vlm: VLM) -> NetworkVLM:
    assert isinstance(vlm, NetworkVLM)
    return vlm


# Separate adapters


@pytest.mark.parametrize("init", ["lora", "adalora"])
def test_an_edit_of_several_requests_has_the_rank_of_the_settings(tiny_vlm: NetworkVLM, init: str):
    deltas = low_rank(as_network(lora(init=init).apply(tiny_vlm, MIXED)).deltas)
    assert {len(delta.u) for delta in deltas.values()} == {2}
    assert not any(delta.u.requires_grad or delta.v.requires_grad for delta in deltas.values())


@pytest.mark.parametrize("shared", [False, True])
def test_edits_need_no_gradient(tiny_vlm: NetworkVLM, shared: bool):
    editor = lora(shared=shared)
    once = editor.apply(tiny_vlm, MIXED)
    twice, each = editor.apply(once, MIXED[:1]), editor.apply_each(once, MIXED)
    for vlm in (once, twice, each):
        assert not vlm.predict(MIXED).logits.requires_grad
    assert not any(tensor.requires_grad for tensor in edit_of(twice).kept.values())


def test_requests_of_one_edit_share_an_adapter_that_fits_all_of_them(tiny_vlm: NetworkVLM):
    edited = lora(steps=40, stop_loss=1.0, rank=4).apply(tiny_vlm, SEEN[:2])
    assert (nll(tiny_vlm, SEEN[:2]) > 2).all()
    assert (nll(edited, SEEN[:2]) < 1).all()


def test_every_separate_edit_begins_from_the_same_values(tiny_vlm: NetworkVLM):
    """In the first step B = 0 leaves A as it is."""
    each = low_rank(as_network(lora(steps=1).apply_each(tiny_vlm, MIXED)).deltas)
    for row, request in enumerate(MIXED):
        alone = low_rank(as_network(lora(steps=1).apply(tiny_vlm, [request])).deltas)
        for site, delta in alone.items():
            assert torch.equal(each[site].v[row], delta.v)
            assert torch.equal(each[site].v[row], each[site].v[0])


def test_another_seed_begins_elsewhere(tiny_vlm: NetworkVLM):
    first, again, other = (
        low_rank(as_network(lora(steps=1, seed=seed).apply(tiny_vlm, MIXED)).deltas)
        for seed in (3, 3, 4)
    )
    for site, delta in first.items():
        assert torch.equal(delta.v, again[site].v)
        assert not torch.equal(delta.v, other[site].v)


# An edit that is done


def test_an_answer_that_is_known_is_not_learnt(tiny_vlm: NetworkVLM):
    edited = lora(stop_loss=100.0).apply(tiny_vlm, MIXED)
    assert not any(delta.weight().any() for delta in as_network(edited).deltas.values())


def test_more_steps_change_nothing_once_the_answer_is_learnt(tiny_vlm: NetworkVLM):
    request = SEEN[:1]
    some, more = (
        as_network(lora(stop_loss=1.0, steps=steps, lr=3e-2).apply(tiny_vlm, request))
        for steps in (40, 50)
    )
    assert nll(some, request) < 1 < nll(tiny_vlm, request)
    for site, delta in some.deltas.items():
        assert torch.equal(delta.weight(), more.deltas[site].weight())


def test_a_separate_edit_that_is_done_keeps_its_values_while_others_go_on(tiny_vlm: NetworkVLM):
    editor = lora(stop_loss=1.5, steps=40, lr=3e-2)
    known = lora(stop_loss=1.0, steps=40, lr=3e-2).apply(tiny_vlm, SEEN[:1])  # learns nothing new
    requests = [SEEN[0], SEEN[1], SEEN[2]]
    each = editor.apply_each(known, requests)
    assert isinstance(each, NetworkVLM)
    for row, request in enumerate(requests):
        alone = as_network(editor.apply(known, [request]))
        assert nll(alone, [request]) < 1.5
        of_row = each.select([row])
        torch.testing.assert_close(nll(of_row, [request]), nll(alone, [request]), atol=1e-3, rtol=0)


def test_edits_that_are_done_are_no_longer_asked(tiny_vlm: NetworkVLM, monkeypatch):
    asked: list[list[int]] = []
    measured = Descent.nll

    def nll_of(self: Descent, requests: Sequence[Example], edits: Sequence[int]) -> torch.Tensor:
        asked.append(list(edits))
        return measured(self, requests, edits)

    monkeypatch.setattr(Descent, "nll", nll_of)
    known = lora(stop_loss=1.0, steps=40, lr=3e-2).apply(tiny_vlm, SEEN[:1])
    asked.clear()
    lora(stop_loss=1.5, steps=40, lr=3e-2).apply_each(known, [SEEN[0], SEEN[1]])
    assert asked[0] == [0, 1]
    assert all(edits == [1] for edits in asked[1:])
    assert 1 < len(asked) < 40


# Optimisers


def test_the_learning_rate_decays_after_every_step(tiny_vlm: NetworkVLM):
    sgd = {"optimizer": "sgd", "lr": 1.0}
    one = as_network(lora(steps=1, **sgd).apply(tiny_vlm, MIXED)).deltas
    ended = as_network(lora(steps=5, lr_decay=1e-12, **sgd).apply(tiny_vlm, MIXED)).deltas
    halved = as_network(lora(steps=5, lr_decay=0.5, **sgd).apply(tiny_vlm, MIXED)).deltas
    assert_equal(ended, one, atol=1e-7)
    for site, delta in halved.items():
        assert not torch.allclose(delta.weight(), one[site].weight())


def test_weight_decay_of_adamw_shrinks_the_factors(tiny_vlm: NetworkVLM):
    """A has no gradient in the first step, so the decay alone changes it."""
    plain, decayed = (
        low_rank(as_network(lora(steps=1, optimizer="adamw", weight_decay=decay)
                            .apply(tiny_vlm, MIXED)).deltas)
        for decay in (0.0, 0.5)
    )  # fmt: skip
    for site, delta in plain.items():
        torch.testing.assert_close(decayed[site].v, delta.v * (1 - 1e-2 * 0.5))


def test_the_orthogonality_term_turns_the_factors_towards_orthogonal_ones(tiny_vlm: NetworkVLM):
    def distance(weight: float) -> float:
        editor = lora(steps=10, lr=3e-2, orthogonality=weight)
        deltas = low_rank(as_network(editor.apply(tiny_vlm, MIXED)).deltas)
        rows = [delta.v / editor.config.scale for delta in deltas.values()]
        return sum(float((v @ v.mT - torch.eye(2)).norm()) for v in rows)

    assert distance(5.0) < 0.5 * distance(0.0)


# One adapter over a sequence


def sequence(vlm: NetworkVLM, **settings: Any) -> list[NetworkVLM]:
    """The VLM after each of three edits."""
    found = []
    for request in MIXED:
        vlm = as_network(lora(shared=True, **settings).apply(vlm, [request]))
        found.append(vlm)
    return found


def adapter_of(vlm: VLM) -> dict[str, torch.Tensor]:
    """B A α/r of the adapter that the last edit keeps, by site."""
    kept = edit_of(vlm).kept
    sites = {name.removesuffix(".a") for name in kept if name.endswith(".a")}
    return {
        site.partition(".alpha-16.")[2]: 8 * kept[f"{site}.b"] @ kept[f"{site}.a"] for site in sites
    }


def test_the_edits_of_a_sequence_add_up_to_one_adapter(tiny_vlm: NetworkVLM):
    for edited in sequence(tiny_vlm):
        adapter = adapter_of(edited)
        assert adapter.keys() == set(tiny_vlm.sites("language"))
        for site, change in adapter.items():
            found = edited.deltas[site].weight()
            torch.testing.assert_close(found, change, rtol=1e-4, atol=1e-6)
            assert torch.linalg.matrix_rank(change) == 2


@pytest.mark.parametrize("init", ["lora", "adalora"])
def test_an_edit_of_a_sequence_is_the_change_of_the_adapter(tiny_vlm: NetworkVLM, init: str):
    first, second, _ = sequence(tiny_vlm, init=init)
    assert {len(delta.u) for delta in low_rank(edit_of(first).deltas).values()} == {2}
    assert {len(delta.u) for delta in low_rank(edit_of(second).deltas).values()} == {4}
    for site, delta in edit_of(second).deltas.items():
        change = second.deltas[site].weight() - first.deltas[site].weight()
        torch.testing.assert_close(delta.weight(), change, rtol=1e-4, atol=1e-6)


def test_an_adapter_goes_on_from_merged_and_from_saved_edits(tiny_vlm: NetworkVLM, tmp_path: Path):
    first, second, third = sequence(tiny_vlm)
    second.save(tmp_path / "edits")
    loaded = tiny_vlm.with_edit(load_edit(tmp_path / "edits"))
    for before in (second.merged(), loaded):
        after = as_network(lora(shared=True).apply(before, MIXED[2:]))
        assert_equal(after.deltas, dict(third.deltas))
    sizes = [sum(t.numel() for t in edit_of(vlm).kept.values()) for vlm in (first, third.merged())]
    assert sizes[0] == sizes[1]  # of a merged sequence the newest adapter alone


def test_without_the_last_edit_the_adapter_is_as_before_it(tiny_vlm: NetworkVLM):
    first, second, _ = sequence(tiny_vlm)
    again = as_network(second.without(second.edits[-1].name))
    assert_equal(again.deltas, dict(first.deltas))
    other = as_network(lora(shared=True).apply(again, MIXED[1:2]))
    assert_equal(other.deltas, dict(second.deltas))


def test_separate_edits_of_a_sequence_all_begin_from_its_adapter(tiny_vlm: NetworkVLM):
    first = sequence(tiny_vlm)[0]
    each = as_network(lora(shared=True).apply_each(first, MIXED[1:]))
    for row, request in enumerate(MIXED[1:]):
        alone = as_network(lora(shared=True).apply(first, [request]))
        for site, delta in each.deltas.items():
            found = delta.select([row]).weight()[0]
            torch.testing.assert_close(found, alone.deltas[site].weight(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("other", [{"rank": 3}, {"alpha": 4.0}, {"init": "adalora"}])
def test_other_settings_of_the_adapter_begin_another_one(tiny_vlm: NetworkVLM, other: Any):
    first = sequence(tiny_vlm)[0]
    after = lora(shared=True, **other).apply(first, MIXED[1:2])
    rank = other.get("rank", 2)
    assert {len(d.u) for d in low_rank(edit_of(after).deltas).values()} == {rank}


def test_separate_adapters_keep_nothing_and_their_ranks_add_up(tiny_vlm: NetworkVLM):
    vlm: VLM = tiny_vlm
    for request in MIXED[:2]:
        vlm = lora().apply(vlm, [request])
    assert [edit_of(vlm, place).kept for place in (0, 1)] == [{}, {}]
    assert {len(d.u) for d in low_rank(as_network(vlm).deltas).values()} == {4}


def test_an_edit_is_known_by_its_method_and_title(tiny_vlm: NetworkVLM):
    (edit,) = lora().apply(tiny_vlm, MIXED).edits
    assert isinstance(edit, Edit)
    assert (edit.method, edit.label) == ("lora", "LoRA")
