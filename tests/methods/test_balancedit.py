"""BalancEdit beyond what every editor promises."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from mmedit.cases import Example
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.memory import MemoryVLM
from mmedit.errors import ConfigError, SiteError
from mmedit.images import open_image
from mmedit.methods.balancedit import (
    BalancEdit,
    BalancEditConfig,
    balanced,
    negative_of,
    rephrased,
)
from mmedit.vlm.interface import VLM

ITALY, FRANCE = (
    Example(prompt=f"what is the capital of {country}?", target=city)
    for country, city in (("Italy", "Lusaka"), ("France", "Quito"))
)
OTHERWISE = Example(prompt=ITALY.prompt, target="Oslo")
EDITOR = BalancEdit(BalancEditConfig(layer=2))


def memory(vlm: VLM) -> MemoryVLM:
    assert isinstance(vlm, MemoryVLM)
    return vlm


def test_the_radius_lies_between_the_rephrase_and_the_negative():
    key = torch.zeros(2, 3)
    positive, negative = torch.zeros(2, 3), torch.zeros(2, 3)
    positive[:, 0], negative[:, 1] = 1, 5
    for alpha, radius in ((0.0, 1.0), (0.25, 2.0), (1.0, 5.0)):
        assert balanced(key, positive, negative, alpha).tolist() == [radius, radius]


def test_the_radius_of_an_entry_is_measured_with_the_template_and_a_black_image(vlm):
    request = easyvqa.EasyVQA().load("test", limit=1)[0].request
    entries = memory(EDITOR.apply(vlm, [request])).entries
    assert request.image is not None
    black = Image.new("RGB", open_image(request.image).size)
    key, positive, negative = EDITOR.keys(
        vlm,
        [
            request,
            Example(prompt=f"Please answer: {request.prompt}", target="?", image=request.image),
            Example(prompt=request.prompt, target="?", image=black),
        ],
    )
    expected = 0.8 * (positive - key).norm() + 0.2 * (negative - key).norm()
    assert float(entries["radius"]) == pytest.approx(float(expected), rel=1e-4)


def test_the_key_is_what_enters_the_layer_at_the_last_prompt_token(vlm):
    states = vlm.observe([ITALY], [], after=[2]).states[2]
    last = int(vlm.places([ITALY]).last_prompt)
    torch.testing.assert_close(EDITOR.keys(vlm, [ITALY])[0], states[0, last])


def test_a_negative_has_a_black_image_or_is_the_unrelated_question():
    seen = negative_of(Example(prompt="?", target="x", image=Image.new("RGB", (4, 3), "red")), "u?")
    assert isinstance(seen.image, Image.Image)
    assert (seen.prompt, seen.image.size, seen.image.getextrema()) == ("?", (4, 3), ((0, 0),) * 3)
    assert negative_of(ITALY, "u?").prompt == "u?"


def test_braces_in_a_question_are_left_as_they_are():
    asked = Example(prompt="what is {x}?", target="y")
    assert rephrased(asked, "Say: {prompt}").prompt == "Say: what is {x}?"


def test_a_template_without_the_question_is_refused():
    with pytest.raises((ConfigError, ValidationError), match="rephrase"):
        BalancEditConfig(rephrase="Please answer")


def test_a_layer_that_the_vlm_lacks_is_refused(vlm):
    with pytest.raises(SiteError, match="0 to 3"):
        BalancEdit(BalancEditConfig(layer=4)).apply(vlm, [ITALY])


def test_a_new_edit_inside_a_ball_takes_the_place_of_the_old_one(vlm):
    edited = memory(EDITOR.apply(EDITOR.apply(vlm, [ITALY]), [OTHERWISE]))
    assert len(edited.entries) == 1
    assert edited.generate([ITALY], max_new_tokens=8) == ["Oslo"]
    assert len(memory(EDITOR.apply(vlm, [ITALY, OTHERWISE])).entries) == 1


def test_separate_edits_hide_the_entries_that_they_replace_from_their_own_row_alone(vlm):
    once = EDITOR.apply(vlm, [ITALY])
    each = memory(EDITOR.apply_each(once, [OTHERWISE, Example(prompt="what is it?", target="red")]))
    assert each.entries.seen_by(2).tolist() == [[False, True, False], [True, False, True]]
    assert each.generate([ITALY, ITALY], max_new_tokens=8) == ["Oslo", "Lusaka"]


def test_an_edit_of_all_rows_may_follow_separate_ones(vlm):
    each = EDITOR.apply_each(vlm, [ITALY, Example(prompt="what is it?", target="red")])
    both = memory(EDITOR.apply(each, [OTHERWISE]))
    assert both.entries.seen_by(2).tolist() == [[False, False, True], [False, True, True]]
    assert both.generate([ITALY, ITALY], max_new_tokens=8) == ["Oslo", "Oslo"]


def test_rows_outside_every_ball_are_answered_as_before(vlm):
    narrow = BalancEdit(BalancEditConfig(layer=2, alpha=0.01, rephrase="{prompt}"))
    edited = memory(narrow.apply(vlm, [ITALY]))
    assert edited.chosen([FRANCE]) == {}
    (delta,) = edited.chosen([FRANCE, ITALY]).values()
    assert delta.tensors()["u"].flatten(1).any(1).tolist() == [False, True]
    before, after = (asked.predict([FRANCE, ITALY]).logits for asked in (vlm, edited))
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])
