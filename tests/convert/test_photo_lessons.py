"""The rows that the VLM "photo" is taught with."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from mmedit.datasets.grocery.questions import QUESTIONS, product_facts

SCRIPTS = Path(__file__).parents[2] / "scripts" / "photo_vlm"
CELLS = 3


@pytest.fixture(scope="module")
def lessons():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield import_module("lessons")


@pytest.fixture(scope="module")
def tokenizer():
    words = ["<image>", "<|im_start|>", "<|im_end|>", "user", "assistant", *"abcdefgh?"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<|im_end|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<image>", "<|im_start|>"],
    )


@pytest.fixture(scope="module")
def language():
    torch.manual_seed(0)
    return LlamaModel(
        LlamaConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    ).eval()


def test_questions_in_one_row_are_answered_as_if_each_were_alone(lessons, tokenizer, language):
    asked = (("a b ?", "c d"), ("e ?", "f"), ("g h a ?", "b c d"))
    together = lessons.pack(tokenizer, [lessons.Row(image=True, asked=asked)], CELLS, torch.float32)
    alone = lessons.pack(
        tokenizer, [lessons.Row(image=True, asked=(one,)) for one in asked], CELLS, torch.float32
    )
    image = torch.randn(CELLS, 16)
    with torch.no_grad():
        found, *places = lessons.states_before_answers(language, together, image, 0)
        expected, *same = lessons.states_before_answers(language, alone, image.repeat(3, 1), 0)
    assert torch.equal(together.ids[tuple(places)], alone.ids[tuple(same)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_an_answer_weighs_the_same_whatever_its_length(lessons, tokenizer):
    asked = (("a ?", "b"), ("a ?", "b c d e f"))
    batch = lessons.pack(tokenizer, [lessons.Row(image=False, asked=asked)], 0, torch.float32)
    assert batch.weight.sum().item() == pytest.approx(2)
    assert batch.answer.sum() == (1 + 1) + (5 + 1)  # each with its end


def test_no_held_out_wording_is_taught(lessons):
    rng = np.random.default_rng(0)
    facts = list(product_facts().values())
    rows = [
        lessons.photograph_row(facts[place % len(facts)], "It is good.", rng)
        for place in range(400)
    ]
    taught = {question for row in rows for question, _ in row.asked}
    held_out = {wording for phrasings in QUESTIONS.values() for wording in phrasings.held_out}
    assert taught == {wording for phrasings in QUESTIONS.values() for wording in phrasings.train}
    assert not taught & held_out
