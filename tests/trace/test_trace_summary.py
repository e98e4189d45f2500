"""Recovery rates, tables and pages are made from records alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from traced import made_record, made_trace

from mmedit.adapters.places import Places
from mmedit.trace.captions import notes_of
from mmedit.trace.groups import groups_of
from mmedit.trace.outputs import markdown, write_outputs
from mmedit.trace.settings import TraceSettings, window_at

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


def test_image_tokens_in_a_square_are_cut_into_cells():
    groups = groups_of(places_of(image=25), 4)
    assert groups.grid == 4
    counts = groups.masks[groups.cells].sum(1).reshape(4, 4)
    assert counts.tolist() == [[4, 2, 2, 2], [2, 1, 1, 1], [2, 1, 1, 1], [2, 1, 1, 1]]


def test_other_image_tokens_are_cut_into_parts_that_follow_each_other():
    groups = groups_of(places_of(image=7), 2)
    assert groups.grid == 0
    assert groups.masks[groups.cells].sum(1).tolist() == [2, 2, 2, 1]


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
