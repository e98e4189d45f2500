"""Positions, contexts, values and keys of the methods that locate a fact."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny import random_image

from mmedit.cases import Example
from mmedit.chunks import chunks
from mmedit.deltas import LowRank
from mmedit.editors.closed_form.contexts import (
    MOST_CONTEXTS,
    context_texts,
    in_contexts,
    mean_over_contexts,
)
from mmedit.editors.closed_form.keys import joined, read_keys
from mmedit.editors.closed_form.positions import require_positions, spots
from mmedit.editors.closed_form.values import (
    OtherImage,
    ValueConfig,
    asked_of,
    find_values,
    kl_questions,
)
from mmedit.editors.shifts import Shift
from mmedit.errors import EditError, SiteError
from mmedit.images import image_key
from mmedit.vlm.network import NetworkVLM

FACT = Example(prompt="what is the capital of Italy?", target="Santo Domingo", subject="Italy")
SEEN = Example(prompt="what color is the shape?", target="red", image=random_image(0))
OTHER = random_image(1)


@pytest.fixture
def site(vlm: NetworkVLM) -> str:
    return vlm.value_sites[2]


def test_the_file_of_contexts_has_as_many_texts_as_the_settings_allow():
    assert len(context_texts()) == MOST_CONTEXTS == len(set(context_texts()))


def test_a_context_comes_before_the_question_and_leaves_the_subject_in_it(vlm):
    rows = in_contexts([FACT], 2)
    assert rows[0] == FACT
    assert rows[1].prompt.endswith(FACT.prompt)
    places = vlm.places(rows)
    counts = places.is_subject.sum(1).tolist()
    assert counts == [counts[0]] * 3


def test_the_clean_question_counts_one_half():
    rows = torch.tensor([[4.0], [1.0], [3.0], [8.0], [0.0], [0.0]])
    assert mean_over_contexts(rows, 2).tolist() == [[3.0], [4.0]]
    assert mean_over_contexts(rows, 0).tolist() == rows.tolist()


def test_rules_name_the_positions_they_say(vlm):
    asked = [FACT, SEEN]
    places = vlm.places(asked)
    subject = spots("last_subject", places)
    assert subject.reads[0, places.last_subject[0], 0] == 1
    assert subject.reads[1, places.last_prompt[1], 0] == 1  # no subject
    answer = spots("answer", places)
    assert torch.equal(answer.writes.sum(-1).bool(), places.predicts_answer)
    assert answer.real.sum(1).tolist() == places.predicts_answer.sum(1).tolist()
    image = spots("image_mean", places)
    assert image.real.tolist() == [[False], [True]]
    values = torch.randn(2, places.is_real.shape[1], 3)
    expected = values[1][places.is_image[1]].mean(0)
    torch.testing.assert_close(image.read(values)[1, 0], expected)


def test_requests_without_a_subject_are_counted(vlm, caplog):
    with caplog.at_level(logging.INFO, logger="mmedit"):
        require_positions("last_subject", [FACT, SEEN], vlm.places([FACT, SEEN]))
    assert "1 of 2 requests name no subject" in caplog.text


def test_image_mean_needs_an_image(vlm):
    with pytest.raises(EditError, match=r"give the request an image, or set editor\.position"):
        require_positions("image_mean", [FACT], vlm.places([FACT]))


def test_a_shift_adds_its_value_at_its_positions_alone(vlm, site):
    places = vlm.places([FACT, SEEN])
    where = spots("last_prompt", places)
    out, width = vlm.shape(site)
    value = torch.randn(2, 1, out)
    shifted = vlm.with_deltas({site: Shift(value, where.writes, width)})
    before, after = (one.observe([FACT, SEEN], [site]).y[site] for one in (vlm, shifted))
    change = (after - before)[places.is_real]
    expected = (where.writes @ value)[places.is_real]
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-5)


def test_a_shift_composes_with_an_edit_at_its_site_and_is_no_weight(vlm, site):
    out, width = vlm.shape(site)
    edit = LowRank(torch.randn(1, out), torch.randn(1, width))
    where = spots("last_prompt", vlm.places([FACT]))
    shift = Shift(torch.randn(1, 1, out), where.writes, width)
    both = vlm.with_deltas({site: edit}).with_deltas({site: shift})
    first, second = (one.observe([FACT], [site]) for one in (vlm, both))
    expected = first.y[site] + edit(first.x[site]) + shift(first.x[site])
    torch.testing.assert_close(second.y[site], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(SiteError, match="not a change of a weight"):
        shift.weight()


def test_values_make_the_model_say_the_answer(vlm, site):
    asked = asked_of([FACT], contexts=1, images=(), with_kl=True)
    keys = read_keys(vlm, [FACT], [site], rule="answer", contexts=0, after=3)[site]
    norms = keys.output.norm(dim=-1)
    shift = find_values(vlm, asked, site, norms, rule="answer", config=ValueConfig())
    where = spots("answer", vlm.places([FACT]))
    shifted = vlm.with_deltas({site: Shift(shift, where.writes, vlm.shape(site)[1])})
    found = shifted.predict([FACT])
    assert torch.equal(found.logits.argmax(-1)[found.is_answer], found.target[found.is_answer])
    assert (shift.norm(dim=-1) <= 4.0 * norms * (1 + 1e-5)).all()


def test_values_searched_for_together_are_those_searched_for_alone(vlm, site):
    requests, config = [FACT, SEEN], ValueConfig(steps=4)

    def found(asked_for: list[Example]) -> torch.Tensor:
        keys = read_keys(vlm, asked_for, [site], rule="answer", contexts=0, after=3)[site]
        asked = asked_of(asked_for, contexts=1, images=[OtherImage("x", OTHER)], with_kl=True)
        norms = keys.output.norm(dim=-1)
        return find_values(vlm, asked, site, norms, rule="answer", config=config)

    together = found(requests)
    for row, request in enumerate(requests):
        alone = found([request])
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=1e-3, atol=1e-3)
    assert not together[1, found([SEEN]).shape[1] :].any()


def test_an_answer_may_have_fewer_tokens_than_that_of_the_kl_term(vlm, site):
    short = Example(prompt="what is the capital of Italy?", target="red", subject="Italy")
    assert int(vlm.places([short]).is_answer.sum()) == 1
    asked = asked_of([short], contexts=0, images=(), with_kl=True)
    config = ValueConfig(steps=3)
    shift = find_values(vlm, asked, site, torch.ones(1, 1), rule="answer", config=config)
    assert shift.shape[1] == 1
    assert shift.any()


def test_the_search_ends_when_the_loss_is_small(vlm, site):
    known = Example(prompt=FACT.prompt, target=vlm.generate([FACT], max_new_tokens=8)[0])
    asked = asked_of([known], contexts=0, images=(), with_kl=False)
    norms = torch.ones(1, 1)
    config = ValueConfig(stop_loss=50.0)
    shift = find_values(vlm, asked, site, norms, rule="last_prompt", config=config)
    assert not shift.any()


def test_the_kl_term_asks_without_image_about_another_image_and_for_the_subject(tmp_path):
    path = tmp_path / "own.png"
    random_image(0).save(path)
    request = Example(prompt="what is shown?", target="a cup", image=path, subject="shown")
    images = [OtherImage(image_key(path), random_image(0)), OtherImage("other", OTHER)]
    without, another, alone = kl_questions(request, images)
    assert (without.prompt, without.image) == (request.prompt, None)
    assert (another.prompt, another.image) == (request.prompt, OTHER)
    assert (alone.prompt, alone.image) == ("shown", None)
    assert kl_questions(Example(prompt="x", target="y"), images) == []


def test_keys_are_the_inputs_at_the_positions(vlm, site):
    keys = read_keys(vlm, [FACT, SEEN], [site], rule="last_prompt", contexts=2, after=3)[site]
    observed = vlm.observe([FACT, SEEN], [site], after=[3])
    at = vlm.places([FACT, SEEN]).last_prompt
    for row in range(2):
        for found, there in (
            (keys.clean, observed.x[site]),
            (keys.output, observed.y[site]),
            (keys.state, observed.states[3]),
        ):
            torch.testing.assert_close(found[row, 0], there[row, at[row]], rtol=1e-4, atol=1e-4)


def test_parts_with_fewer_keys_are_filled_with_zeros():
    first, second = torch.ones(2, 1, 3), torch.ones(1, 2, 3)
    whole = joined([first, second])
    assert whole.shape == (3, 2, 3)
    assert not whole[:2, 1].any()
    assert [list(rows) for rows in chunks(range(5), 2)] == [[0, 1], [2, 3], [4]]


def test_observing_refuses_sites_outside_the_language_model_and_layers_that_do_not_exist(vlm):
    with pytest.raises(SiteError, match="not in the language model"):
        vlm.observe([SEEN], vlm.sites("bridge")[:1])
    with pytest.raises(SiteError, match="the state after 9 layers was asked for"):
        vlm.observe([FACT], [], after=[9])
