"""On a tiny random BLIP-2: the VLM predicts and generates what transformers itself does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from closeness import assert_close, moved
from tiny import IMAGES, MIXED, SEEN, TEXT_ONLY, adapter_of, assert_same, of_text
from torch import Tensor

from mmedit.adapters.inputs import PaddingSide
from mmedit.cases import Example
from mmedit.errors import DataError, ModelError
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

CONTEXT = "New Fact: a red circle yes\nPrompt:"


@pytest.fixture(params=["opt", "llama"])
def any_vlm(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path: Path) -> NetworkVLM:
    """A VLM with OPT or Llama as its language model."""
    if request.param == "opt":
        return load_vlm(tiny_folder)
    return load_vlm(tiny.save_model(tmp_path, language=request.param))


def with_padding(vlm: NetworkVLM, side: PaddingSide) -> NetworkVLM:
    return NetworkVLM(vlm.adapter, deltas=vlm.deltas, padding_side=side)


def plain_logits(vlm: NetworkVLM, example: Example) -> Tensor:
    """Return the logits of transformers, [sequence, vocab]."""
    network, inputs = vlm.adapter.network, plain_inputs(vlm, example, answer=True)
    model = network if example.image else network.language_model
    return model(**inputs).logits[0]


def ids_of(vlm: NetworkVLM, text: str) -> list[int]:
    return adapter_of(vlm).tokenizer(text, add_special_tokens=False)["input_ids"]


def plain_inputs(vlm: NetworkVLM, example: Example, *, answer: bool) -> dict[str, Tensor]:
    """Return the inputs of transformers, without padding."""
    image = [vlm.adapter.network.config.image_token_index] * tiny.QUERIES if example.image else []
    texts = ids_of(vlm, example.context) + ids_of(vlm, example.prompt)
    ids = torch.tensor([image + texts + (ids_of(vlm, f" {example.target}") if answer else [])])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if example.image is not None:
        processor = adapter_of(vlm).processor.image_processor
        inputs |= processor(images=[example.image], return_tensors="pt")
    return inputs


# predict


@torch.no_grad()
@pytest.mark.parametrize("example", MIXED, ids=["image", "text", "caption"])
def test_logits_are_those_of_transformers_about_the_next_token(
    any_vlm: NetworkVLM, example: Example
):
    predictions = any_vlm.predict([example])
    n = int(predictions.is_text.sum())
    plain = plain_logits(any_vlm, example)[-n - 1 : -1]
    assert_close(of_text(predictions, 0), plain)
    ids = plain_inputs(any_vlm, example, answer=True)["input_ids"]
    assert torch.equal(predictions.target[predictions.is_text], ids[0, -n:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_answer_mask_covers_the_answer_and_nothing_else(tiny_vlm: NetworkVLM, side: PaddingSide):
    predictions = with_padding(tiny_vlm, side).predict(MIXED)
    for row, example in enumerate(MIXED):
        answer = predictions.target[row][predictions.is_answer[row]].tolist()
        assert answer == ids_of(tiny_vlm, f" {example.target}")
    assert not (predictions.is_answer & ~predictions.is_text).any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_is_prompt_and_answer_for_rows_with_image(tiny_vlm: NetworkVLM, side: PaddingSide):
    predictions = with_padding(tiny_vlm, side).predict(SEEN)
    for row, example in enumerate(SEEN):
        text = predictions.target[row][predictions.is_text[row]].tolist()
        assert text == ids_of(tiny_vlm, example.prompt) + ids_of(tiny_vlm, f" {example.target}")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("others", [[], SEEN], ids=["alone", "in a batch"])
def test_first_token_of_a_text_without_image_is_predicted_by_nothing(
    tiny_vlm: NetworkVLM, side: PaddingSide, others: list[Example]
):
    predictions = with_padding(tiny_vlm, side).predict([TEXT_ONLY, *others])
    text = predictions.target[0][predictions.is_text[0]].tolist()
    assert (
        text == (ids_of(tiny_vlm, TEXT_ONLY.prompt) + ids_of(tiny_vlm, f" {TEXT_ONLY.target}"))[1:]
    )


@torch.no_grad()
@pytest.mark.parametrize("example", [SEEN[0], TEXT_ONLY], ids=["image", "text"])
def test_context_conditions_the_answer_and_is_no_part_of_the_text(
    tiny_vlm: NetworkVLM, example: Example
):
    in_context = replace(example, context=CONTEXT)
    predictions = tiny_vlm.predict([in_context])
    text = ids_of(tiny_vlm, example.prompt) + ids_of(tiny_vlm, f" {example.target}")
    assert predictions.target[predictions.is_text].tolist() == text
    plain = plain_logits(tiny_vlm, in_context)[-len(text) - 1 : -1]
    assert_close(of_text(predictions, 0), plain)
    answer = len(ids_of(tiny_vlm, f" {example.target}"))
    without = of_text(tiny_vlm.predict([example]), 0)[-answer:]
    assert moved(plain[-answer:], without)


def test_padding_side_changes_nothing(any_vlm: NetworkVLM):
    left, right = (with_padding(any_vlm, side).predict(MIXED) for side in ("left", "right"))
    assert_same(left, right)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_do_not_depend_on_the_rest_of_the_batch(tiny_vlm: NetworkVLM, side: PaddingSide):
    rows = [*SEEN, TEXT_ONLY, replace(TEXT_ONLY, context=CONTEXT)]
    together = with_padding(tiny_vlm, side).predict(rows)
    for number, example in enumerate(rows):
        assert_same(together[[number]], tiny_vlm.predict([example]))


def test_predictions_are_picked_by_row(tiny_vlm: NetworkVLM):
    predictions = tiny_vlm.predict(SEEN)
    assert torch.equal(predictions[[2, 0]].logits, predictions.logits[[2, 0]])
    assert torch.equal(predictions[1:].is_answer, predictions.is_answer[1:])


def test_a_call_without_examples_is_an_error(tiny_vlm: NetworkVLM):
    for call in (
        tiny_vlm.predict,
        lambda none: tiny_vlm.generate(none, max_new_tokens=1),
        tiny_vlm.represent,
    ):
        with pytest.raises(DataError) as raised:
            call([])
        assert str(raised.value) == "no examples were given; a call needs at least one"


def test_too_long_prompt_is_an_error_that_counts_the_tokens(tiny_vlm: NetworkVLM):
    long = replace(SEEN[0], prompt="a photo of" * 30, context=CONTEXT)
    context, prompt, answer = (
        len(ids_of(tiny_vlm, text)) for text in (CONTEXT, long.prompt, f" {long.target}")
    )
    with pytest.raises(ModelError) as raised:
        tiny_vlm.predict([SEEN[1], long])
    assert str(raised.value) == (
        f"{long.prompt[:60]!r} makes a sequence of {tiny.QUERIES + context + prompt + answer} "
        f"tokens (image and markers {tiny.QUERIES}, context {context}, prompt {prompt}, answer "
        f"{answer}); this model takes 64. "
        "Shorten it (with IKE: a smaller k)."
    )


@pytest.mark.parametrize("field", ["prompt", "context", "target"])
def test_text_that_holds_the_image_token_is_an_error(tiny_vlm: NetworkVLM, field: str):
    with pytest.raises(ModelError) as raised:
        tiny_vlm.predict([SEEN[0], replace(TEXT_ONLY, **{field: "see <image>"})])
    prompt = "see <image>" if field == "prompt" else TEXT_ONLY.prompt
    assert str(raised.value) == (
        f"{prompt!r} or its context or answer contains '<image>', which stands for the image; "
        "leave it out: the image is put before the text by itself."
    )


def test_answer_to_nothing_is_an_error(tiny_vlm: NetworkVLM):
    for call in (tiny_vlm.predict, lambda rows: tiny_vlm.generate(rows, max_new_tokens=1)):
        with pytest.raises(ModelError) as raised:
            call([replace(TEXT_ONLY, prompt="")])
        assert str(raised.value) == (
            "the answer 'Tirana' has no token before it, so nothing predicts its first token; "
            "give an image, a context or a prompt"
        )
    assert tiny_vlm.predict([replace(SEEN[0], prompt="")]).is_answer.all()


# generate


@torch.no_grad()
@pytest.mark.parametrize("examples", [SEEN, [TEXT_ONLY], MIXED], ids=["image", "text", "mixed"])
def test_generation_is_the_greedy_one_of_transformers(any_vlm: NetworkVLM, examples: list[Example]):
    network, tokenizer = any_vlm.adapter.network, adapter_of(any_vlm).tokenizer
    wanted = []
    for example in examples:
        inputs = plain_inputs(any_vlm, example, answer=False)
        model = network if example.image else network.language_model
        (both,) = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = both[inputs["input_ids"].shape[1] :]
        wanted.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    assert len(set(wanted)) == len(wanted)
    assert any_vlm.generate(examples, max_new_tokens=8) == wanted


def test_generation_does_not_look_at_the_target(tiny_vlm: NetworkVLM):
    other = [replace(example, target="no") for example in MIXED]
    assert tiny_vlm.generate(other, max_new_tokens=4) == tiny_vlm.generate(MIXED, max_new_tokens=4)


def test_generation_that_does_not_fit_is_an_error(tiny_vlm: NetworkVLM):
    prompt = tiny.QUERIES + len(ids_of(tiny_vlm, SEEN[0].prompt))
    with pytest.raises(ModelError) as raised:
        tiny_vlm.generate([SEEN[0]], max_new_tokens=tiny.MAX_TOKENS)
    assert str(raised.value) == (
        f"64 new tokens do not fit after a prompt of {prompt} tokens; this model takes 64 in total"
    )


# represent


@pytest.mark.parametrize("side", ["left", "right"])
def test_representation_is_one_vector_per_row_with_either_padding(
    tiny_vlm: NetworkVLM, side: PaddingSide
):
    found = with_padding(tiny_vlm, side).represent(MIXED)
    assert found.shape == (3, tiny_vlm.shape(tiny_vlm.sites("language")[0])[1])
    assert found.dtype == torch.float32
    alone = torch.cat([tiny_vlm.represent([example]) for example in MIXED])
    assert_close(found, alone)


def test_representation_is_of_image_and_prompt_and_not_of_the_answer(tiny_vlm: NetworkVLM):
    first = tiny_vlm.represent([SEEN[0]])
    other_answer = tiny_vlm.represent([replace(SEEN[0], target="red circle")])
    assert_close(other_answer, first)
    for other in (replace(SEEN[0], image=IMAGES[1]), replace(SEEN[0], prompt="a photo of")):
        assert moved(tiny_vlm.represent([other]), first)
