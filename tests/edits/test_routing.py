"""Many edits in one batch: each row is answered under edits of its own, as one by one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch
from closeness import assert_close, moved
from tiny import of_text, random_image
from tiny_families import build_family

from mmedit.adapters import adapter_for
from mmedit.adapters.base import Stage
from mmedit.cases import Example
from mmedit.deltas import Delta, Dense, LowRank, Sum
from mmedit.edits import routed_deltas
from mmedit.edits.routed_deltas import Routed, RoutedLowRank
from mmedit.edits.routing import is_routable, routed
from mmedit.errors import EditError, SiteError
from mmedit.methods.ft import FT, FTConfig
from mmedit.methods.ike.context import Context, Fact, InContextVLM
from mmedit.vlm.decoding import RowDecoding, RowsDecoding
from mmedit.vlm.edit import DeltaChange, Edit, SeparateChange, stack
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

ROWS = (
    *tiny.SEEN,
    tiny.TEXT_ONLY,
    Example(prompt="a photo of", target="no", image=random_image(5, width=64, height=30)),
)


@pytest.fixture(scope="module", params=["blip2", "llava", "qwen2_5_vl"])
def any_vlm(request: pytest.FixtureRequest, tiny_loaded: NetworkVLM) -> NetworkVLM:
    """BLIP-2's OPT flattens rows and tokens; Qwen2.5-VL's images differ in their tokens."""
    if request.param == "blip2":
        return NetworkVLM(tiny_loaded.adapter)
    network, processor = build_family(request.param)
    return NetworkVLM(adapter_for(network.config)(network, processor))


def edit_of(name: str, deltas: dict[str, Delta]) -> Edit:
    return Edit(name=name, method="made", label="made", change=DeltaChange(deltas))


def low_rank(vlm: VLM, sites: Sequence[str], *, seed: int, rank: int = 2) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    return edit_of(
        f"low-{seed}",
        {
            site: LowRank(
                *(torch.randn(rank, n, generator=generator) * 0.3 for n in vlm.shape(site))
            )
            for site in sites
        },
    )


def dense(vlm: VLM, sites: Sequence[str], *, seed: int) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    return edit_of(
        f"dense-{seed}",
        {site: Dense(torch.randn(*vlm.shape(site), generator=generator) * 0.1) for site in sites},
    )


def one_by_one(vlm: VLM, edits: Sequence[Edit]) -> VLM:
    for edit in edits:
        vlm = vlm.with_edit(edit)
    return vlm


def assert_as_one_by_one(vlm: VLM, stacks: Sequence[Sequence[Edit]], rows: Sequence[Example]):
    """Assert that each row has the predictions and the answer of its edits alone."""
    together = routed(vlm, stacks)
    found, said = together.predict(rows), together.answer(rows, max_new_tokens=4)
    before = vlm.predict(rows)
    for row, (edits, example) in enumerate(zip(stacks, rows, strict=True)):
        alone = one_by_one(vlm, edits)
        expected = of_text(alone.predict([example]), 0)
        assert_close(of_text(found, row), expected)
        assert said[row] == alone.answer([example], max_new_tokens=4)[0]
        if edits and example.image is not None:
            assert moved(of_text(found, row), of_text(before, row))


# Each row as by itself


@pytest.mark.parametrize("where", ["language", "bridge", "vision"])
def test_rows_under_edits_of_any_kind_and_under_none_answer_as_one_by_one(
    any_vlm: NetworkVLM, where: Stage
):
    sites = any_vlm.sites(where)
    few = low_rank(any_vlm, sites, seed=1)
    many = low_rank(any_vlm, sites[:1], seed=2, rank=5)
    whole = dense(any_vlm, sites, seed=3)
    stacks = [[few], [whole], [many, whole, few], [many], []]
    assert_as_one_by_one(any_vlm, stacks, ROWS)
    assert_as_one_by_one(any_vlm, stacks[::-1], ROWS)


def test_one_row_may_have_edits_of_all_stages(tiny_vlm: NetworkVLM):
    everywhere = [
        low_rank(tiny_vlm, tiny_vlm.sites(where), seed=seed)
        for seed, where in enumerate(("language", "bridge", "vision"))
    ]
    stacks = [everywhere, [], everywhere[1:], everywhere[:1], everywhere[2:]]
    assert_as_one_by_one(tiny_vlm, stacks, ROWS)


def test_a_high_rank_is_computed_for_its_own_rows_alone(tiny_vlm: NetworkVLM, monkeypatch):
    monkeypatch.setattr(routed_deltas, "LARGEST_RANK", 3)
    sites = tiny_vlm.sites("language")
    stacks = [
        [low_rank(tiny_vlm, sites, seed=1, rank=8)],
        [low_rank(tiny_vlm, sites, seed=2, rank=3)],
        [],
    ]
    kinds = {type(part) for part in deltas_of(routed(tiny_vlm, stacks))}
    assert kinds == {Routed, RoutedLowRank}
    assert_as_one_by_one(tiny_vlm, stacks, ROWS[:3])


def test_a_base_that_is_edited_keeps_its_edits_in_every_row(tiny_vlm: NetworkVLM):
    sites = tiny_vlm.sites("language")
    base = one_by_one(tiny_vlm, [dense(tiny_vlm, sites, seed=9), low_rank(tiny_vlm, sites, seed=8)])
    assert_as_one_by_one(base, [[low_rank(base, sites, seed=1)], [], []], ROWS[:3])


def test_an_edit_that_stands_twice_in_a_stack_is_added_twice(tiny_vlm: NetworkVLM):
    sites = tiny_vlm.sites("language")
    edit, other = low_rank(tiny_vlm, sites, seed=1), dense(tiny_vlm, sites, seed=2)
    assert_as_one_by_one(tiny_vlm, [[edit, edit], [edit], [other, edit, other]], ROWS[:3])


def test_a_stack_in_one_edit_is_its_edits_in_order(tiny_vlm: NetworkVLM):
    sites = tiny_vlm.sites("language")
    edits = [low_rank(tiny_vlm, sites, seed=1), dense(tiny_vlm, sites, seed=2)]
    assert_as_one_by_one(tiny_vlm, [[stack("both", edits)], edits, edits[:1]], ROWS[:3])


def test_rows_with_one_stack_need_no_routing(tiny_vlm: NetworkVLM):
    edit = low_rank(tiny_vlm, tiny_vlm.sites("language"), seed=1)
    shared = routed(tiny_vlm, [[edit]] * 3)
    assert {delta.edits for delta in deltas_of(shared)} == {None}
    assert routed(tiny_vlm, [[]] * 3) is tiny_vlm
    assert_as_one_by_one(tiny_vlm, [[edit]] * 3, ROWS[:3])


def test_selected_rows_keep_their_edits(tiny_vlm: NetworkVLM):
    sites = tiny_vlm.sites("language")
    edits = [low_rank(tiny_vlm, sites, seed=1), dense(tiny_vlm, sites, seed=2)]
    both = routed(tiny_vlm, [edits[:1], edits[1:], []])
    found = both.select([2, 1, 1]).predict(ROWS[:3])
    for row, under in enumerate(([], edits[1:], edits[1:])):
        expected = one_by_one(tiny_vlm, under).predict([ROWS[row]])
        assert_close(of_text(found, row), of_text(expected, 0))


def test_each_row_has_its_own_decoding_and_its_own_edit(tiny_vlm: NetworkVLM):
    sites = tiny_vlm.sites("language")
    stacks = [[low_rank(tiny_vlm, sites, seed=1)], [dense(tiny_vlm, sites, seed=2)], []]
    rows = [RowDecoding(temperature=1.0, seed=5), RowDecoding(max_new_tokens=2), RowDecoding()]
    found = routed(tiny_vlm, stacks).answer(ROWS[:3], max_new_tokens=6, decoding=RowsDecoding(rows))
    for row, edits in enumerate(stacks):
        alone = one_by_one(tiny_vlm, edits)
        how = RowsDecoding(rows[row : row + 1])
        (expected,) = alone.answer([ROWS[row]], max_new_tokens=6, decoding=how)
        assert found[row] == expected


def test_rows_that_do_not_fit_one_batch_keep_their_edits(tiny_vlm: NetworkVLM):
    edit = dense(tiny_vlm, tiny_vlm.sites("language"), seed=2)
    asked = [ROWS[0], Example(prompt="a photo of " * 6, target="x", image=tiny.IMAGES[0])]
    left = [tiny.MAX_TOKENS - used for used in tiny_vlm.prompt_tokens(asked)]
    rows = [RowDecoding(max_new_tokens=number) for number in left]
    both = routed(tiny_vlm, [[edit], []])
    found = both.answer(asked, max_new_tokens=64, decoding=RowsDecoding(rows))
    alone = [
        vlm.answer([example], max_new_tokens=number)[0]
        for vlm, example, number in zip(
            (tiny_vlm.with_edit(edit), tiny_vlm), asked, left, strict=True
        )
    ]
    assert found == alone


def test_a_row_whose_edit_gives_nan_leaves_the_others_alone(tiny_vlm: NetworkVLM):
    sites = tiny_vlm.sites("language")
    broken = edit_of(
        "broken",
        {
            site: LowRank(*(torch.full((1, n), torch.nan) for n in tiny_vlm.shape(site)))
            for site in sites
        },
    )
    fine = low_rank(tiny_vlm, sites, seed=1)
    found = routed(tiny_vlm, [[broken], [fine], []]).predict(ROWS[:3])
    assert of_text(found, 0).isnan().any()
    for row, under in ((1, [fine]), (2, [])):
        expected = one_by_one(tiny_vlm, under).predict([ROWS[row]])
        assert_close(of_text(found, row), of_text(expected, 0))


# Costs


def deltas_of(vlm: VLM) -> list[Delta]:
    """Return the deltas of all sites, those of a sum one by one."""
    assert isinstance(vlm, NetworkVLM)
    return [
        part
        for delta in vlm.deltas.values()
        for part in (delta.parts if isinstance(delta, Sum) else (delta,))
    ]


def test_no_weight_is_copied_for_a_row(tiny_vlm: NetworkVLM):
    site = tiny_vlm.sites("language")[0]
    edits = [dense(tiny_vlm, [site], seed=1), low_rank(tiny_vlm, [site], seed=2)]
    made = deltas_of(routed(tiny_vlm, [edits, [], *[edits[:1]] * 30]))
    (whole,) = (part for part in made if isinstance(part, Routed))
    (factors,) = (part for part in made if isinstance(part, RoutedLowRank))
    kept = edits[0].deltas
    assert kept is not None
    assert [d.weight().data_ptr() for d in whole.deltas.values()] == [
        kept[site].weight().data_ptr()
    ]
    assert len(factors.u) == 2
    assert whole.edits == factors.edits == 32
    out, width = tiny_vlm.shape(site)
    assert (whole.parameters, factors.parameters) == (out * width, 2 * (out + width))


def test_weights_of_routed_rows_are_those_of_their_edits(tiny_vlm: NetworkVLM):
    (site, *_) = tiny_vlm.sites("language")
    edits = [low_rank(tiny_vlm, [site], seed=1), dense(tiny_vlm, [site], seed=2)]
    stacks = [edits, edits[:1], edits[1:], []]
    found = routed(tiny_vlm, stacks).weight(site)
    expected = torch.stack([one_by_one(tiny_vlm, under).weight(site) for under in stacks])
    assert_close(found, expected)


def dense_in(vlm: VLM) -> list[Delta]:
    routes = [delta for delta in deltas_of(vlm) if isinstance(delta, Routed)]
    return [delta for one in routes for delta in one.deltas.values()]


def test_a_stack_is_composed_once_and_forgotten_with_its_edit(tiny_vlm: NetworkVLM):
    sites = tiny_vlm.sites("language")
    both = stack("both", [dense(tiny_vlm, sites, seed=1), dense(tiny_vlm, sites, seed=2)])
    first, second = (dense_in(routed(tiny_vlm, [[both], []])) for _ in range(2))
    assert len(first) == len(sites)
    assert list(map(id, first)) == list(map(id, second))
    gone = weakref.ref(first[0])
    del both, first, second
    gc.collect()
    assert gone() is None


# What cannot be routed


def test_an_edit_that_wraps_the_vlm_is_not_routable(tiny_vlm: NetworkVLM):
    edited = InContextVLM(tiny_vlm, Context((Fact("a\n", ()),), k=0))
    change: Any = SeparateChange()
    wrapper = Edit(name="facts", method="ike", label="IKE", change=change)
    weights = low_rank(tiny_vlm, tiny_vlm.sites("language"), seed=1)
    assert is_routable([weights, stack("both", [weights, weights])])
    assert is_routable([])
    assert not is_routable([weights, wrapper])
    with pytest.raises(
        EditError, match="'facts' by IKE is not one change of weights, so it cannot"
    ):
        routed(tiny_vlm, [[weights], [wrapper]])
    found = routed(edited, [[weights], []]).predict(ROWS[:2])  # the base may be a wrapper
    expected = edited.with_edit(weights).predict(ROWS[:1])
    assert_close(of_text(found, 0), of_text(expected, 0))


def test_separate_edits_are_not_routable(tiny_vlm: NetworkVLM):
    each = FT(FTConfig(steps=1)).apply_each(tiny_vlm, tiny.SEEN[:2])
    (edit,) = each.edits
    assert not is_routable([edit])
    with pytest.raises(EditError, match="is not one change of weights"):
        routed(tiny_vlm, [[edit], []])


def test_an_edit_of_another_vlm_is_not_routed(tiny_vlm: NetworkVLM):
    edit = FT(FTConfig(steps=1)).edit(tiny_vlm, tiny.SEEN[:1], name="mine")
    processor = tiny.build_processor()
    other = NetworkVLM(type(tiny_vlm.adapter)(tiny.build_network(processor, seed=1), processor))
    with pytest.raises(EditError, match="the edit 'mine' was made on"):
        routed(other, [[edit], []])


def test_another_number_of_rows_is_an_error(tiny_vlm: NetworkVLM):
    edit = low_rank(tiny_vlm, tiny_vlm.sites("language"), seed=1)
    with pytest.raises(SiteError, match="2 separate edits cannot answer 3 rows"):
        routed(tiny_vlm, [[edit], []]).predict(ROWS[:3])
