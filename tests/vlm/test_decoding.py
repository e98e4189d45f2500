"""Answers by a decoding: each row has its own temperature, seed, stop texts and length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from tiny import MIXED, SEEN, TEXT_ONLY
from tiny_families import build_family

from mmedit.adapters import adapter_for
from mmedit.adapters.blip2 import Blip2Adapter
from mmedit.adapters.generation import Answer, Stops
from mmedit.cases import Example
from mmedit.errors import ConfigError, DataError, ModelError
from mmedit.methods.ike.context import Context, Fact, InContextVLM, new_fact
from mmedit.methods.serac import SERAC, SERACConfig
from mmedit.methods.serac.memory import SERACVLM, empty
from mmedit.vlm.decoding import RowDecoding, RowsDecoding, tempered
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM

HOT = RowDecoding(temperature=1.5, seed=7)
GREEDY = RowDecoding()


@pytest.fixture(scope="module", params=["blip2", "llava", "qwen2_5_vl"])
def any_vlm(request: pytest.FixtureRequest) -> NetworkVLM:
    return build(request.param)


def build(family: str, **settings: Any) -> NetworkVLM:
    """Return a tiny VLM of a family, with these generation settings of its checkpoint."""
    if family == "blip2":
        processor = tiny.build_processor()
        network: Any = tiny.build_network(processor)
        adapter: Any = Blip2Adapter
    else:
        network, processor = build_family(family)
        adapter = adapter_for(network.config)
    network.generation_config.update(**settings)
    return NetworkVLM(adapter(network, processor))


def answered(vlm: VLM, examples: Sequence[Example], *rows: RowDecoding, n: int = 8) -> list[Answer]:
    return vlm.answer(examples, max_new_tokens=n, decoding=RowsDecoding(rows))


# One answer


def test_a_greedy_row_beside_sampled_ones_says_what_the_vlm_says_alone(any_vlm: NetworkVLM):
    found = answered(any_vlm, MIXED, HOT, GREEDY, HOT)
    (alone,) = any_vlm.answer([TEXT_ONLY], max_new_tokens=8)
    assert found[1] == alone
    assert answered(any_vlm, MIXED, *[GREEDY] * 3) == any_vlm.answer(MIXED, max_new_tokens=8)


def test_a_sampled_answer_depends_on_its_seed_alone(any_vlm: NetworkVLM):
    rows = [replace(HOT, seed=seed, top_p=0.9) for seed in (1, 2, 3)]
    together = answered(any_vlm, MIXED, *rows)
    alone = [answered(any_vlm, [e], row)[0] for e, row in zip(MIXED, rows, strict=True)]
    backwards = answered(any_vlm, MIXED[::-1], *rows[::-1])
    beside = answered(any_vlm, [*MIXED, *SEEN], *rows, GREEDY, replace(HOT, max_new_tokens=1), HOT)
    assert together == alone == backwards[::-1] == beside[:3]
    same = [answered(any_vlm, SEEN[:1], replace(HOT, seed=seed))[0].text for seed in range(6)]
    assert len(set(same)) > 1


def test_a_row_ends_at_its_own_length_while_others_go_on(any_vlm: NetworkVLM):
    whole = any_vlm.answer(MIXED, max_new_tokens=8)
    found = answered(any_vlm, MIXED, RowDecoding(max_new_tokens=2), GREEDY, GREEDY)
    assert found[1:] == whole[1:]
    assert (found[0].tokens, found[0].is_cut_off) == (2, True)
    assert whole[0].tokens > 2
    assert answered(any_vlm, MIXED, *[RowDecoding(max_new_tokens=99)] * 3) == whole


def test_a_stop_text_ends_its_row_and_is_not_part_of_the_answer(any_vlm: NetworkVLM):
    whole = any_vlm.answer(MIXED, max_new_tokens=8)
    stop = whole[0].text[2:4]
    found = answered(any_vlm, MIXED, RowDecoding(stop=("never said", stop)), GREEDY, GREEDY)
    assert found[1:] == whole[1:]
    assert found[0].text == whole[0].text.partition(stop)[0].strip()
    assert not found[0].is_cut_off
    assert found[0].tokens < whole[0].tokens


def test_every_step_of_a_row_is_told_and_its_end_before_the_batch_has_ended():
    vlm = build("blip2")
    heard: list[object] = []

    def on_tokens(ids: list[int]) -> bool:
        heard.append(ids)
        return True

    told = RowDecoding(max_new_tokens=3, on_tokens=on_tokens, on_end=heard.append)
    later = RowDecoding(on_tokens=lambda ids: bool(heard.append(len(ids))) or True)
    found = answered(vlm, SEEN[:2], told, later, n=5)
    first, second, third = (ids for ids in heard if isinstance(ids, list))
    assert first == second[:1] == third[:1]
    assert third[:2] == second
    assert vlm.frozen.decode(torch.tensor([third])) == [found[0].text]
    assert heard.index(found[0]) < heard.index(4)
    assert [count for count in heard if isinstance(count, int)] == [1, 2, 3, 4, 5]


def test_a_cancelled_row_ends_alone():
    vlm = build("blip2")
    whole = vlm.answer(SEEN, max_new_tokens=6)
    leave = RowDecoding(on_tokens=lambda ids: len(ids) < 2)
    found = answered(vlm, SEEN, GREEDY, leave, GREEDY, n=6)
    assert [found[0], found[2]] == [whole[0], whole[2]]
    assert (found[1].tokens, found[1].is_cut_off) == (2, True)


def test_an_end_token_counts_for_nothing_and_is_not_told(vlm: NetworkVLM):
    heard: list[list[int]] = []
    row = RowDecoding(on_tokens=lambda ids: bool(heard.append(ids)) or True)
    (found,) = answered(vlm, SEEN[:1], row)
    (plain,) = vlm.answer(SEEN[:1], max_new_tokens=8)
    assert found == plain
    assert not found.is_cut_off
    assert found.tokens == len(heard[-1]) == len(heard) < 8


@pytest.mark.parametrize("family", ["blip2", "llava"])
def test_stop_strings_and_missing_ends_of_a_checkpoint_hold_under_a_decoding(family: str):
    (whole,) = build(family).answer(SEEN[:1], max_new_tokens=6)
    for settings in ({"stop_strings": [whole.text[3]]}, {"eos_token_id": None}):
        vlm = build(family, **settings)
        plain = vlm.answer(SEEN, max_new_tokens=6)
        assert answered(vlm, SEEN, *[GREEDY] * 3, n=6) == plain
        own = answered(vlm, SEEN, RowDecoding(max_new_tokens=1), *[GREEDY] * 2, n=6)
        assert own[1:] == plain[1:]


def test_each_row_needs_room_for_its_own_length_alone():
    vlm = build("blip2")
    (short, long) = SEEN[1], replace(SEEN[0], context="a" * 30)
    used = vlm.prompt_tokens([short, long])
    assert used[1] > used[0] + 10
    left = [tiny.MAX_TOKENS - tokens for tokens in used]
    rows = [RowDecoding(max_new_tokens=number) for number in left]
    found = answered(vlm, [short, long], *rows, n=tiny.MAX_TOKENS)
    alone = [vlm.answer([e], max_new_tokens=m)[0] for e, m in zip((short, long), left, strict=True)]
    assert found == alone
    rows[1] = RowDecoding(max_new_tokens=left[1] + 1)
    with pytest.raises(ModelError, match=f"{left[1] + 1} new tokens do not fit after a prompt of"):
        answered(vlm, [short, long], *rows, n=tiny.MAX_TOKENS)


# Probabilities


def sampled(scores: Sequence[float], how: RowDecoding, *, rows: int, steps: int) -> torch.Tensor:
    """Return how often each token was drawn, by as many rows with seeds of their own."""
    decoding = RowsDecoding([replace(how, seed=seed) for seed in range(rows)])
    state = decoding.begin(None, Stops(ends=()), max_new_tokens=steps)
    batch = torch.tensor(scores).repeat(rows, 1)
    drawn = torch.cat([state.choose(batch).argmax(-1) for _ in range(steps)])
    return drawn.bincount(minlength=len(scores)).double()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_their_probabilities_at_a_temperature(temperature: float):
    scores = [2.0, 1.0, 0.0, -1.0, 1.5]
    counts = sampled(scores, RowDecoding(temperature=temperature), rows=100, steps=100)
    expected = (torch.tensor(scores).double() / temperature).softmax(-1) * counts.sum()
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 18.5  # 0.1 % of χ² with four degrees of freedom are above


def test_top_p_draws_from_the_fewest_tokens_that_have_this_probability():
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    for top_p, kept in ((0.4, 1), (0.5, 1), (0.51, 2), (0.9, 3), (1.0, 4)):
        counts = sampled(scores, RowDecoding(temperature=1.0, top_p=top_p), rows=50, steps=40)
        assert (counts > 0).tolist() == [place < kept for place in range(4)], top_p
    two = sampled(scores, RowDecoding(temperature=1.0, top_p=0.6), rows=100, steps=100)
    assert (two[0] / two.sum()).item() == pytest.approx(0.5 / 0.8, abs=0.02)


def test_each_row_has_its_own_temperature_and_top_p():
    scores = torch.tensor([0.5, 0.3, 0.2]).log()
    rows = [
        RowDecoding(temperature=1.0),
        RowDecoding(temperature=2.0, top_p=0.1),
        RowDecoding(temperature=1e-300),
    ]
    found = tempered(scores.repeat(3, 1), rows).softmax(-1)
    torch.testing.assert_close(found[0], scores.exp())
    torch.testing.assert_close(found[1:], torch.tensor([[1.0, 0.0, 0.0]]).repeat(2, 1))


# Edits that wrap a VLM


def test_an_in_context_edit_answers_by_the_decoding(any_vlm: NetworkVLM):
    text = new_fact(TEXT_ONLY.prompt, "Tirana")
    edited = InContextVLM(any_vlm, Context((Fact(text, ()),), k=0))
    context = f"{text}Prompt: "
    asked = [replace(example, context=context) for example in MIXED[:2]]
    rows = [HOT, RowDecoding(max_new_tokens=2)]
    found = answered(edited, MIXED[:2], *rows)
    assert found == answered(any_vlm, asked, *rows)
    assert edited.prompt_tokens(MIXED[:2]) == any_vlm.prompt_tokens(asked)
    assert found[1].tokens == 2


def test_rows_in_and_out_of_the_scope_of_serac_answer_by_the_decoding(vlm: NetworkVLM):
    edited = remembering(vlm, SEEN[:1])
    asked = [SEEN[1], SEEN[0], TEXT_ONLY]
    rows = [HOT, replace(HOT, seed=3, max_new_tokens=4), RowDecoding(max_new_tokens=2)]
    found = answered(edited, asked, *rows)
    alone = [answered(edited, [e], row)[0] for e, row in zip(asked, rows, strict=True)]
    assert found == alone
    outside = answered(vlm, asked, *rows)
    assert [found[0], found[2]] == [outside[0], outside[2]]
    assert found[1] != outside[1]
    assert answered(edited, asked, *[GREEDY] * 3) == edited.answer(asked, max_new_tokens=8)


def test_a_row_in_scope_is_told_the_tokens_of_the_counterfactual_model_alone(vlm: NetworkVLM):
    edited = remembering(vlm, SEEN[:1])
    heard: list[list[int]] = []
    row = replace(HOT, max_new_tokens=4, on_tokens=lambda ids: bool(heard.append(ids)) or True)
    found = answered(edited, [SEEN[1], SEEN[0]], GREEDY, row)
    assert [len(ids) for ids in heard] == list(range(1, found[1].tokens + 1))
    assert vlm.frozen.decode(torch.tensor([heard[-1]])) == [found[1].text]


def remembering(vlm: VLM, edits: Sequence[Example]) -> SERACVLM:
    """Return the VLM with an untrained SERAC, whose scope is the very same questions."""
    small = {"scope_width": 16, "scope_layers": 1, "counterfactual_width": 16}
    editor = SERAC(SERACConfig.model_validate({"counterfactual_layers": 1, **small}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = editor.build(editor.facts(vlm))
    with torch.no_grad():
        keys = network.scope(edits, vlm.frozen)
    memory = empty(keys.shape[1], keys.device).with_all(edits, keys)
    return SERACVLM(vlm, network, memory, threshold=0.999)


# What a caller gives


def test_prompt_tokens_are_those_of_the_networks_inputs(any_vlm: NetworkVLM):
    adapter = any_vlm.adapter
    images = any_vlm.frozen.see(MIXED)
    inputs = adapter.inputs(MIXED, images, padding_side="left", with_target=False)
    assert any_vlm.prompt_tokens(MIXED) == inputs.attention_mask.sum(1).tolist()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; expected a number from 0 on"),
        ({"temperature": float("nan")}, "temperature is nan; expected a number from 0 on"),
        ({"temperature": True}, "temperature is True; expected a number from 0 on"),
        ({"top_p": 0.0}, "top_p is 0.0; expected a number above 0, at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1; expected a number above 0, at most 1"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0 on"),
        ({"seed": 2**63}, r"seed is 9223372036854775808; expected a whole number below 2\*\*63"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a whole number from 1 on"),
        ({"stop": ("",)}, "stop is .*; expected texts that are not empty"),
    ],
)
def test_a_setting_of_a_row_that_means_nothing_is_one_error(settings: dict[str, Any], text: str):
    with pytest.raises(ConfigError, match=text):
        RowDecoding(**settings)


def test_a_decoding_for_another_number_of_rows_is_one_error(tiny_vlm: NetworkVLM, vlm: NetworkVLM):
    in_context = InContextVLM(tiny_vlm, Context((Fact("a\n", ()),), k=0))
    for asked in (tiny_vlm, in_context, remembering(vlm, SEEN[:1])):
        with pytest.raises(DataError, match="the decoding is for 2 rows and 3 examples were given"):
            answered(asked, SEEN, GREEDY, GREEDY)


def test_what_is_not_a_decoding_is_one_error(tiny_vlm: NetworkVLM):
    with pytest.raises(ConfigError, match=r"decoding is 0\.7; expected RowsDecoding"):
        tiny_vlm.answer(SEEN, max_new_tokens=2, decoding=0.7)  # pyright: ignore[reportArgumentType]
