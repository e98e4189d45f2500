"""Conversation formats as tokens: for a tokenizer that knows spaces only (Llama's kind puts one
before every text), and one that works on bytes.
"""

from __future__ import annotations

from typing import Any

import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mmedit.adapters import prompts
from mmedit.adapters.prompts import PROBE, Segmenter, chat_format, read_format
from mmedit.errors import ModelError

TEXTS = ("what color is it? blue", "USER: a photo of ASSISTANT: no yes", f"{PROBE} vqyk [INST]")
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: "
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %} "
    "{% else %}ASSISTANT: {{ m['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class Asked:
    """As much of a processor as the formats are read from."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str) -> None:
        self.tokenizer = tokenizer
        tokenizer.chat_template = template

    def apply_chat_template(self, messages: list[Any], **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(messages, **{"tokenize": False, **options})


def spaces() -> PreTrainedTokenizerFast:
    """As Llama's: a space is part of the word behind it, and the first word gets one too."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    bpe.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "\n"]
    special = ["<unk>", "<s>", "</s>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS * 4, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def ids(tokenizer: PreTrainedTokenizerFast, text: str, *, special: bool = False) -> list[int]:
    return tokenizer(text, add_special_tokens=special)["input_ids"]


@pytest.fixture(params=["spaces", "bytes"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return spaces() if request.param == "spaces" else tiny.build_processor().tokenizer


def test_the_tokenizer_of_spaces_puts_one_before_a_text():
    assert ids(spaces(), "photo") == ids(spaces(), " photo") == ids(spaces(), "a photo")[1:]


@pytest.mark.parametrize("cut", range(1, len(TEXTS[1])))
def test_a_text_in_pieces_has_the_tokens_of_its_words(tokenizer, cut: int):
    """Cut before a space, where prompts and answers are cut, it has those of the whole."""
    text = TEXTS[1]
    first, second = Segmenter(tokenizer)([text[:cut], text[cut:]])
    assert tokenizer.decode(first + second).lstrip() == text
    if text[cut] == " ":
        assert ids(tokenizer, text)[-len(second) :] == second


def test_an_empty_text_has_no_tokens(tokenizer):
    assert Segmenter(tokenizer)(["", "a photo"])[0] == []


class Counted:
    """A tokenizer that counts the texts it is asked for."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.texts = []

    def __call__(self, texts, **options):
        self.texts += texts
        return self.tokenizer(texts, **options)


def test_a_text_is_tokenised_once_and_its_tokens_stay_the_same(tokenizer):
    counted = Counted(tokenizer)
    segment = Segmenter(counted)
    first = segment(["a photo", "yes", "a photo"])
    asked = len(counted.texts)
    first[0].clear()
    assert (
        segment(["yes", "a photo"])
        == [first[1], first[2]]
        == Segmenter(tokenizer)(["yes", "a photo"])
    )
    assert len(counted.texts) == asked


def test_remembered_texts_are_bounded_and_others_take_their_place(tokenizer, monkeypatch):
    monkeypatch.setattr(prompts, "REMEMBERED", len("a photo") + len("yes"))
    counted = Counted(tokenizer)
    segment = Segmenter(counted)
    expected = Segmenter(tokenizer)(["a photo", "yes", "no"])
    assert [*segment(["a photo"]), *segment(["yes"]), *segment(["no"])] == expected
    assert segment(["a photo of a photo"]) == Segmenter(tokenizer)(["a photo of a photo"])
    asked = len(counted.texts)
    assert segment(["no", "yes"]) == [expected[2], expected[1]]
    assert len(counted.texts) == asked + 2


def test_a_template_gives_the_tokens_of_the_whole_conversation(tokenizer):
    for image in ("", "<image>\n"):
        form = chat_format(Asked(tokenizer, CHAT), marker="<image>" if image else None)
        segment = Segmenter(tokenizer)
        prompt, answer = segment([form.prompt("what color is it?"), form.answer("blue")])
        place = tokenizer.convert_tokens_to_ids("<image>")
        asked = [*form.before_image, *([place] if image else []), *form.before_prompt]
        whole = f"USER: {image}what color is it? ASSISTANT: blue"
        special = bool(tokenizer.bos_token) and tokenizer("")["input_ids"] != []
        found = [*asked, *prompt, *form.after_prompt, *answer]
        assert found == ids(tokenizer, whole, special=special)


def test_a_context_stands_between_template_and_prompt_and_changes_neither(tokenizer):
    form = chat_format(Asked(tokenizer, CHAT), marker=None)
    assert form.space == " "
    assert form.context("yes no: ") == " yes no:"
    assert form.prompt("what") == " what"
    assert form.context("") == form.prompt("") == ""


def test_without_template_the_prompt_is_tokenised_as_it_stands_alone(tokenizer):
    form = read_format(tokenizer, PROBE, marker=None, special_tokens=False, lead=" ")
    prompt, answer = Segmenter(tokenizer)([form.prompt("a photo of"), form.answer("no")])
    assert [*form.before_prompt, *prompt] == ids(tokenizer, "a photo of")
    assert prompt + answer == ids(tokenizer, "a photo of no")


def test_a_template_that_loses_image_or_prompt_is_an_error(tokenizer):
    for template, problem in (
        (CHAT.replace("<image>", ""), "expected '<image>' once in it, before the prompt"),
        (CHAT.replace("{{ c['text'] }}", "?"), "the prompt cannot be found again"),
        ("{{ raise_exception('no') }}", "the model's chat template cannot be rendered"),
    ):
        with pytest.raises(ModelError, match=problem):
            chat_format(Asked(tokenizer, template), marker="<image>")
