"""Recovery rates, tables and pages are made from records alone."""

from __future__ import annotations

import re
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import random_image
from tiny_families import build_family
from traced import made_record, made_trace

from mmedit import load_vlm
from mmedit.adapters import adapter_for
from mmedit.adapters.minigpt4 import MiniGPT4Adapter
from mmedit.adapters.places import Places
from mmedit.cases import Example
from mmedit.trace.captions import notes_of
from mmedit.trace.groups import groups_of
from mmedit.trace.item_runs import ItemRuns
from mmedit.trace.outputs import markdown, write_outputs
from mmedit.trace.settings import TraceSettings, window_at
from mmedit.vlm.network import NetworkVLM

FIRST = made_record("a", clean=0.9, corrupt=0.1, restored=0.5)
SECOND = made_record("b", clean=0.6, corrupt=0.4, restored=0.6)


def test_the_recovery_rate_is_the_ratio_of_the_means():
    found = made_trace(FIRST, SECOND).recovery("block")
    assert found.rate[0, 1] == pytest.approx((0.4 + 0.2) / (0.8 + 0.2))
    assert found.low[0, 1] == pytest.approx(0.5)
    assert found.high[0, 1] == pytest.approx(1.0)
    assert found.rate[1].tolist() == [0.0, 0.0]


def test_one_item_has_a_rate_and_no_interval():
    found = made_trace(FIRST).recovery("block")
    assert found.rate[0, 1] == pytest.approx(0.5)
    assert np.isnan(found.low).all()


def test_without_a_total_effect_there_is_no_rate():
    found = made_trace(made_record("a", clean=0.1, corrupt=0.1, restored=0.5))
    assert np.isnan(found.recovery("block").rate).all()
    assert "| block |" not in markdown(found)
    assert any("takes away less" in note for note in notes_of(found))


def test_the_table_names_the_best_layer_of_each_group():
    assert "| block | image | 2 | 1 | 0.60 | 0.50 to 1.00 |" in markdown(made_trace(FIRST, SECOND))


def test_the_page_escapes_what_records_say_and_loads_nothing(tmp_path):
    bad = made_record("<b>x", clean=0.9, corrupt=0.1, restored=0.5, prompt="<script>alert(1)")
    write_outputs(made_trace(bad), tmp_path)
    page = (tmp_path / "trace.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "default-src 'none'" in page
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', page))


def test_image_tokens_in_rows_and_columns_are_cut_into_cells():
    groups = groups_of(places_of(image=25), 4, (5, 5))
    assert groups.grid == (4, 4)
    counts = groups.masks[groups.cells].sum(1).reshape(4, 4)
    assert counts.tolist() == [[4, 2, 2, 2], [2, 1, 1, 1], [2, 1, 1, 1], [2, 1, 1, 1]]


def test_the_grid_of_an_image_need_not_be_a_square():
    groups = groups_of(places_of(image=15), 4, (3, 5))
    assert groups.grid == (3, 4)
    cells = groups.masks[groups.cells][:, :15].reshape(3, 4, 3, 5)
    assert cells.sum((2, 3)).tolist() == [[2, 1, 1, 1]] * 3
    assert cells[1, 0].nonzero().tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("grid", [None, (2, 3)], ids=["none", "of other tokens"])
def test_image_tokens_without_a_grid_are_cut_into_parts_that_follow_each_other(grid):
    groups = groups_of(places_of(image=9), 2, grid)
    assert groups.grid is None
    assert groups.masks[groups.cells].sum(1).tolist() == [3, 2, 2, 2]


GRIDS = {
    "qwen2_vl": (3, 5), "qwen2_5_vl": (3, 5), "qwen3_vl": (3, 5), "pixtral": (5, 8),
    "llava": (2, 2), "paligemma": (2, 2), "fast_vlm": (4, 4), "photo": (2, 2),
    "instructblip": None, "llava_next": None, "internvl": None,
}  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_the_grid_of_an_image_is_that_of_its_processor(name):
    network, processor = build_family(name)
    vlm = NetworkVLM(adapter_for(network.config)(network, processor))
    picture = random_image(0).resize((96, 56))
    runs = ItemRuns(vlm, Example(prompt="a photo of", target="blue", image=picture))
    assert runs.image_grid == GRIDS[name]
    if runs.image_grid:
        assert prod(runs.image_grid) == int(runs.places.is_image.sum())


def test_queries_of_a_qformer_are_no_cells_and_four_patches_of_a_row_are_one():
    embedded = load_vlm("embedded")
    seen = embedded.frozen.see([Example(prompt="a", target="b", image=random_image(0))])[0]
    assert embedded.adapter.image_grid(seen) is None
    vision = SimpleNamespace(image_size=224, patch_size=14)
    network = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    linear: Any = SimpleNamespace(network=network)
    assert MiniGPT4Adapter.image_grid(linear, seen) == (16, 4)


def test_a_page_shades_no_cells_without_a_grid_and_says_so(tmp_path):
    (tmp_path / "images").mkdir()
    random_image(0).save(tmp_path / "images" / "0000.webp")
    assert FIRST.cells
    loose = FIRST.model_copy(update={"cells": FIRST.cells.model_copy(update={"grid": None})})
    for record, shaded in ((FIRST, True), (loose, False)):
        write_outputs(made_trace(record), tmp_path)
        page = (tmp_path / "trace.html").read_text(encoding="utf-8")
        assert ("grid-template:repeat(2,1fr)/repeat(2,1fr)" in page) == shaded
        assert ("no cells of the image are shaded" in page) != shaded


def test_the_layer_that_one_half_chooses_is_measured_on_the_other():
    items = [made_record(str(k), clean=0.9, corrupt=0.1, restored=0.5) for k in range(5)]
    items[1] = made_record("1", clean=0.9, corrupt=0.1, restored=0.2)
    image, last = made_trace(*items).best()
    assert image.layer == 1
    assert image.rate == pytest.approx((4 * 0.4 + 0.1) / (5 * 0.8), abs=1e-4)
    assert image.halves
    assert image.halves.layer == 1
    assert image.halves.rate == pytest.approx((0.1 + 0.4) / 1.6, abs=1e-4)
    assert last.halves is None
    assert "| 1 | 0.31 (0.12 to 0.50) |" in markdown(made_trace(*items))
    few = made_trace(*items[:3])
    assert few.best()[0].halves is None
    assert "| – | – |" in markdown(few)


def test_windows_are_cut_off_at_both_ends():
    assert [list(window_at(layer, 3, 4)) for layer in (0, 1, 3)] == [[0, 1], [0, 1, 2], [2, 3]]
    assert TraceSettings().window_of(30) == 6
    assert TraceSettings().window_of(48) == 10
    assert TraceSettings().window_of(4) == 1


def places_of(image: int) -> Places:
    """Return an image, two tokens of a prompt and one of an answer."""
    kinds = torch.tensor([0] * image + [1, 1, 2])[None]
    nothing = torch.zeros_like(kinds).bool()
    return Places(
        is_real=~nothing,
        is_image=kinds == 0,
        is_prompt=kinds == 1,
        is_subject=nothing,
        is_answer=kinds == 2,
    )
