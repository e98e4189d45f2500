"""A generation skips in its prefill the layers that no edit reaches, if the batch was answered
before, and answers as without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from placed import half_on_disk
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
from tiny import MIXED, SEEN, TEXT_ONLY, random_image

from mmedit.adapters.generation import Answer
from mmedit.cases import Example
from mmedit.vlm.decoding import RowDecoding, RowsDecoding
from mmedit.vlm.interface import VLM
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.prefills import Prefills

NEW = 5


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest) -> NetworkVLM:
    return build(request.param)


@pytest.fixture
def model(loaded: NetworkVLM) -> NetworkVLM:
    """The same network in every test of a family, with nothing kept yet."""
    return NetworkVLM(loaded.adapter)


def said(vlm: VLM, rows: Sequence[Example] = MIXED, **how: Any) -> list[Answer]:
    return vlm.answer(rows, max_new_tokens=NEW, **how)


def said_whole(vlm: VLM, rows: Sequence[Example] = MIXED, **how: Any) -> list[Answer]:
    with no_reuse():
        return said(vlm, rows, **how)


def edited_last(vlm: NetworkVLM, *, edits: int | None = None) -> NetworkVLM:
    """Return the VLM with an edit of its last layer."""
    return vlm.with_deltas(deltas_at(vlm, sites_at(vlm, "last"), edits=edits))


def assert_skipped(runs: list[int], k: int) -> None:
    """Assert that the first k layers ran in all forwards but one, and the others in all."""
    forwards = runs[-1] if k < len(runs) else runs[0] + 1
    assert runs == [forwards - 1] * k + [forwards] * (len(runs) - k)


@pytest.mark.parametrize("place", PLACES)
def test_answers_after_a_kept_prefill_are_those_after_a_whole_one(model: NetworkVLM, place: Place):
    sites = sites_at(model, place)
    k = first_layer(model, sites)
    edits = len(MIXED) if place == "last" else None
    edited = model.with_deltas(deltas_at(model, sites, edits=edits, scale=2))
    expected, before = said_whole(edited), said_whole(model)
    assert expected != before
    assert said(model) == before
    for _ in range(2):
        with runs_of_layers(model) as runs:
            assert said(edited) == expected
    assert_skipped(runs, k)
    assert said(model) == before


def test_an_edit_of_the_default_sites_begins_with_the_prefill_of_the_base_model(vlm: NetworkVLM):
    fresh = NetworkVLM(vlm.adapter)
    sites = fresh.sites("language")
    k = first_layer(fresh, sites)
    assert k > 0
    edited = fresh.with_deltas(deltas_at(fresh, sites))
    expected = said_whole(edited)
    said(fresh)
    with runs_of_layers(fresh) as runs:
        assert said(edited) == expected
    assert_skipped(runs, k)


@pytest.mark.parametrize("loaded", FORMS, indirect=True)
def test_a_second_question_is_answered_as_without_a_first(model: NetworkVLM):
    edited = edited_last(model)
    questions = (MIXED, [replace(example, prompt="a photo of") for example in MIXED[::-1]])
    expected = [said_whole(edited, rows) for rows in questions]
    for _ in range(2):
        assert [said(edited, rows) for rows in questions] == expected


@pytest.mark.parametrize("loaded", FORMS, indirect=True)
def test_sampled_answers_are_those_after_a_whole_prefill(model: NetworkVLM):
    edited = edited_last(model, edits=len(MIXED))
    rows = [RowDecoding(temperature=2.0, seed=seed, max_new_tokens=2 + seed) for seed in range(3)]
    decoding = RowsDecoding(rows)
    expected = said_whole(edited, decoding=decoding)
    assert expected != said_whole(edited, decoding=RowsDecoding([RowDecoding()] * 3))
    said(edited)
    with runs_of_layers(model) as runs:
        assert said(edited, decoding=decoding) == expected
    assert_skipped(runs, len(runs) - 1)


def test_rows_without_room_for_each_other_are_answered_in_their_groups(tiny_vlm: NetworkVLM):
    edited = edited_last(tiny_vlm, edits=2)
    rows = (TEXT_ONLY, replace(TEXT_ONLY, prompt="a photo of"))
    long = tiny.MAX_TOKENS - min(tiny_vlm.prompt_tokens(rows))
    decoding = RowsDecoding([RowDecoding(max_new_tokens=1), RowDecoding(max_new_tokens=long)])
    with no_reuse():
        expected = edited.answer(rows, max_new_tokens=long, decoding=decoding)
    for _ in range(2):
        assert edited.answer(rows, max_new_tokens=long, decoding=decoding) == expected


@pytest.mark.parametrize("where", ["bridge", "vision"])
def test_an_edit_before_the_language_model_never_uses_a_kept_prefill(tiny_vlm, where: Any):
    sites = (*tiny_vlm.sites(where), *sites_at(tiny_vlm, "last"))
    edited = tiny_vlm.with_deltas(deltas_at(tiny_vlm, sites))
    expected = said_whole(edited)
    said(tiny_vlm)
    for _ in range(2):
        with runs_of_layers(tiny_vlm) as runs:
            assert said(edited) == expected
        assert_skipped(runs, 0)


# What is kept


def kept(vlm: NetworkVLM) -> Any:
    """Return the prefills that a VLM keeps, by batch."""
    return vlm.frozen.prefills._kept


def test_a_kept_prefill_is_changed_by_no_generation(tiny_vlm: NetworkVLM):
    edited = edited_last(tiny_vlm)
    said(edited)
    ((key, prefill),) = kept(tiny_vlm).items()
    tensors = [*prefill.states.values(), *(tensor for pair in prefill.written for tensor in pair)]
    assert len(tensors) == 1 + 2 * 2
    copies = [tensor.clone() for tensor in tensors]
    said(edited)
    said(tiny_vlm)
    assert kept(tiny_vlm)[key] is prefill
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_edits_at_several_layers_share_what_is_kept_of_a_batch(tiny_vlm: NetworkVLM):
    edited = [
        tiny_vlm.with_deltas(deltas_at(tiny_vlm, sites_at(tiny_vlm, place)))
        for place in ("head", "last")
    ]
    expected = [said_whole(vlm) for vlm in edited]
    for _ in range(2):
        assert [said(vlm) for vlm in edited] == expected
    (prefill,) = kept(tiny_vlm).values()
    assert (sorted(prefill.states), len(prefill.written)) == ([2, 3], 3)
    with runs_of_layers(tiny_vlm) as runs:
        said(edited[0])
    assert_skipped(runs, 3)


def test_a_batch_with_other_images_has_a_prefill_of_its_own(tiny_vlm: NetworkVLM):
    edited = edited_last(tiny_vlm)
    others = [replace(SEEN[0], image=random_image(9)), replace(SEEN[2], image=random_image(8))]
    expected = said_whole(edited, others)
    said(edited, (SEEN[0], SEEN[2]))
    with runs_of_layers(tiny_vlm) as runs:
        assert said(edited, others) == expected
    assert_skipped(runs, 0)


def test_prefills_are_bounded_in_bytes_and_a_larger_one_is_not_kept(tiny_vlm: NetworkVLM):
    edited = edited_last(tiny_vlm)
    expected = said_whole(edited)
    said(edited)
    whole = tiny_vlm.frozen.prefills.bytes_used
    tiny_vlm.frozen.prefills = Prefills(tiny_vlm.adapter, memory_bytes=whole)
    for rows in (MIXED[:1], MIXED[1:2], MIXED[2:], MIXED):
        said(edited, rows)
        assert 0 < tiny_vlm.frozen.prefills.bytes_used <= whole
    assert len(kept(tiny_vlm)) == 1
    for bound in (whole - 1, 1):
        tiny_vlm.frozen.prefills = Prefills(tiny_vlm.adapter, memory_bytes=bound)
        for _ in range(2):
            with runs_of_layers(tiny_vlm) as runs:
                assert said(edited) == expected
            assert_skipped(runs, 0)
        assert tiny_vlm.frozen.prefills.bytes_used == 0


def test_a_prompt_with_a_context_is_read_whole_and_not_kept(tiny_vlm: NetworkVLM):
    edited = edited_last(tiny_vlm)
    rows = [replace(example, context="New Fact: yes\nPrompt: ") for example in MIXED]
    for _ in range(2):
        with runs_of_layers(tiny_vlm) as runs:
            assert said(edited, rows) == said_whole(edited, rows)
    assert runs[0] == runs[-1]
    assert tiny_vlm.frozen.prefills.bytes_used == 0


@pytest.mark.parametrize("window", [8, 512])
def test_a_prefill_longer_than_a_sliding_window_is_not_kept(window: int):
    """Such a layer's cache holds the last tokens alone, so it cannot be filled again."""
    model = build("gemma3")
    text = model.adapter.network.config.get_text_config()
    text.sliding_window = window
    edited = edited_last(model)
    assert min(model.prompt_tokens(MIXED)) > 8
    expected = said_whole(edited)
    for _ in range(2):
        with runs_of_layers(model) as runs:
            assert said(edited) == expected
    assert_skipped(runs, 0 if window == 8 else 2)


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match")
def test_a_network_half_on_disk_begins_with_a_kept_prefill_too(tiny_folder: Path, tmp_path: Path):
    whole = load_vlm(tiny_folder)
    offloaded = half_on_disk(tiny_folder, tmp_path / "offloaded", whole)
    deltas = deltas_at(whole, sites_at(whole, "last"))
    expected = said_whole(whole.with_deltas(deltas))
    before = [layer.__dict__.get("forward") for layer in offloaded.adapter.layers]
    assert any(before)
    for _ in range(2):
        with runs_of_layers(offloaded) as runs:
            assert said(offloaded.with_deltas(deltas)) == expected
    assert_skipped(runs, 2)
    assert [layer.__dict__.get("forward") for layer in offloaded.adapter.layers] == before
