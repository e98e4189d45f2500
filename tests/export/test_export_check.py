"""The comparison of an export with the edited VLM."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from mmedit.adapters.generation import Answer
from mmedit.cases import EditCase, Example, Probe
from mmedit.errors import EditError, ModelError
from mmedit.export.check import (
    Outputs,
    Questions,
    compare,
    locality_questions,
    questions_for,
)
from mmedit.vlm.network import NetworkVLM

QUESTIONS = Questions(
    requests=(Example(prompt="a?", target="cat"), Example(prompt="b?", target="dog")),
    locality=(Example(prompt="c?", target="cow"),),
)


def outputs(*texts: str, logits: float = 0.0, vocabulary: int = 4) -> Outputs:
    return Outputs(
        logits=tuple(torch.full((2, vocabulary), logits) for _ in texts),
        answers=tuple(Answer(text=text, is_cut_off=False, tokens=1) for text in texts),
        right=tuple(
            text.lower().startswith(question.target)
            for text, question in zip(texts, QUESTIONS.all, strict=True)
        ),
    )


def test_a_request_is_lost_only_if_its_answer_changed_and_is_not_right_both_times():
    check = compare(
        QUESTIONS, outputs("cat", "dog", "cow"), outputs("Cat.", "fox", "hen", logits=0.25),
        opened_in="bfloat16",
    )  # fmt: skip
    assert [(one.expected, one.found) for one in check.lost] == [("dog", "fox")]
    assert [(one.expected, one.found) for one in check.changed] == [("cat", "Cat."), ("cow", "hen")]
    assert check.largest_logit_difference == 0.25
    assert (check.requests, check.unrelated, check.is_kept) == (2, 1, False)


def test_equal_answers_are_kept_also_where_the_edit_itself_failed():
    same = outputs("cow", "cow", "cow")
    assert compare(QUESTIONS, same, same, opened_in="float32").is_kept


def test_logits_that_are_not_finite_are_never_kept():
    texts = ("cat", "dog", "cow")
    check = compare(
        QUESTIONS, outputs(*texts), outputs(*texts, logits=math.nan), opened_in="float16"
    )
    assert not check.lost
    assert not check.is_kept
    assert check.as_json()["largest_logit_difference"] is None


def test_another_vocabulary_is_an_error():
    texts = ("cat", "dog", "cow")
    with pytest.raises(ModelError, match="expected the same tokenizer and vocabulary"):
        compare(QUESTIONS, outputs(*texts), outputs(*texts, vocabulary=5), opened_in="float32")


def test_locality_questions_differ_and_are_of_both_kinds():
    def case(number: int) -> EditCase:
        text = Example(prompt=f"text {number // 2}", target="x")
        image = Example(prompt="image", target="x", image=tiny.IMAGES[number % 3])
        probes = {Probe.TEXT_LOCALITY: (text,), Probe.IMAGE_LOCALITY: (image,)}
        return EditCase(id=str(number), request=QUESTIONS.requests[0], probes=probes)

    found = locality_questions([case(number) for number in range(4)], 5)
    assert [question.prompt for question in found] == [
        "text 0", "image", "image", "text 1", "image",
    ]  # fmt: skip
    assert len(locality_questions([case(0)], 20)) == 2
    assert locality_questions([], 20) == ()


def test_a_vlm_whose_edits_name_no_request_cannot_be_checked(tiny_vlm: NetworkVLM):
    with pytest.raises(EditError, match="name no request"):
        questions_for(tiny_vlm, ())
