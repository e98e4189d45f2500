"""A generation takes the likeliest tokens whatever a checkpoint's generation settings say, and ends
where the checkpoint says.
"""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from tiny_families import build_family
from transformers import GenerationConfig

from mmedit.adapters.blip2 import Blip2Adapter
from mmedit.adapters.generation import Answer, Stops, read_answers, read_stops
from mmedit.adapters.llava import LlavaAdapter
from mmedit.vlm.network import NetworkVLM

SETTINGS = (
    {"repetition_penalty": 1.3},
    {"encoder_repetition_penalty": 1.5},
    {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.5},
    {"num_beams": 3},
    {"max_length": 3, "min_length": 30, "min_new_tokens": 9},
    {"no_repeat_ngram_size": 1, "bad_words_ids": [[5]], "suppress_tokens": [7]},
    {"forced_eos_token_id": 2, "forced_bos_token_id": 5},
    {"exponential_decay_length_penalty": [1, 1.5]},
    {"guidance_scale": 1.5},
    {"max_time": 1e-6},
    {"prompt_lookup_num_tokens": 3},
    {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    {"stop_strings": ["never said"]},
    {"use_cache": False, "cache_implementation": "static"},
)


def build(family: str, **settings: Any) -> NetworkVLM:
    """Return a tiny VLM that has these generation settings beside its end tokens."""
    if family == "blip2":
        processor = tiny.build_processor()
        network: Any = tiny.build_network(processor)
        parts = (network, network.language_model)
        adapter = Blip2Adapter
    else:
        network, processor = build_family(family)
        parts = (network,)
        adapter = LlavaAdapter
    for part in parts:
        part.generation_config = GenerationConfig(
            **part.generation_config.to_diff_dict() | settings
        )
    return NetworkVLM(adapter(network, processor))


@pytest.mark.parametrize("family", ["blip2", "llava"])
def test_no_setting_of_a_checkpoint_changes_a_greedy_answer(family: str):
    said = build(family).answer(tiny.MIXED, max_new_tokens=6)
    for settings in SETTINGS:
        assert build(family, **settings).answer(tiny.MIXED, max_new_tokens=6) == said, settings


@pytest.mark.parametrize("family", ["blip2", "llava"])
def test_a_generation_ends_before_a_stop_string_and_is_then_not_cut_off(family: str):
    (whole,) = build(family).answer(tiny.SEEN[:1], max_new_tokens=6)
    assert whole.is_cut_off
    stop = whole.text[3]
    (stopped,) = build(family, stop_strings=[stop]).answer(tiny.SEEN[:1], max_new_tokens=6)
    assert (stopped.text, stopped.is_cut_off) == (whole.text.partition(stop)[0].strip(), False)
    assert stopped.tokens < whole.tokens == 6


def test_the_end_token_of_the_tokenizer_counts_where_the_checkpoint_names_none():
    vlm = build("blip2", eos_token_id=None)
    assert vlm.frozen.ends == (vlm.adapter.tokenizer.eos_token_id,)


def test_a_second_adapter_of_a_network_ends_at_the_same_places():
    adapter = build("blip2", stop_strings=["###"], eos_token_id=[2, 9]).adapter
    assert adapter.stops.ends == (2, 9)
    assert read_stops(adapter.network, adapter.tokenizer) == adapter.stops


def test_only_a_row_that_reached_the_largest_length_without_an_end_is_cut_off():
    tokenizer = tiny.build_processor().tokenizer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    (yes,), (no,) = tokenizer(["y", "n"])["input_ids"]
    tokens = torch.tensor([[yes, end, pad], [yes, no, end], [yes, no, yes]])
    stops = Stops(ends=(end,), padding=pad)
    found = read_answers(tokenizer, stops, tokens, max_new_tokens=3)
    assert found == [
        Answer("y", is_cut_off=False, tokens=1),
        Answer("yn", is_cut_off=False, tokens=2),
        Answer("yny", is_cut_off=True, tokens=3),
    ]
    shorter = read_answers(tokenizer, stops, tokens[:2], max_new_tokens=9)
    assert not any(answer.is_cut_off for answer in shorter)


def test_a_vlm_without_end_is_always_cut_off():
    tokenizer = tiny.build_processor().tokenizer
    (found,) = read_answers(tokenizer, Stops(ends=()), torch.tensor([[5, 6]]), max_new_tokens=2)
    assert found.is_cut_off
