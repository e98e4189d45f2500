"""Scores of what is said freely."""

from __future__ import annotations

import json
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from mmedit.errors import DataError
from mmedit.metrics.generation import (
    contains,
    exact,
    fluency,
    normalise,
    repeated,
    rouge_l,
    unchanged,
)

TEXT = st.text(alphabet="ab ,.!?'-1", max_size=20)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("Yes", "yes"),
        ("  a red\tcircle\n", "red circle"),
        ("The cat, the dog", "cat dog"),
        ("cat,dog", "cat dog"),
        ("1,000 people", "1000 people"),
        ("3.5", "3.5"),
        ("no.", "no"),
        ("p.m.", "pm"),
        ("seven", "7"),
        ("none", "0"),
        ("dont", "don't"),
        ("they're", "they're"),
        ("theyre", "they're"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("y'alld've", "y'all'd've"),
        ("ows'at", "ows'at"),
        ("Ive", "ive"),  # the published table says "Ive", and words are in lower case by then
        ("black-white", "black white"),
        ("black - white", "black white"),
        ("yes!", "yes"),
        ('"stop"', "stop"),
        ("", ""),
        ("the", ""),
    ],
)
def test_answers_are_normalised_as_by_the_vqa_evaluation(text: str, normalised: str):
    assert normalise(text) == normalised


@given(TEXT)
def test_normalised_text_is_lower_case_with_single_spaces(text: str):
    found = normalise(text)
    assert found == found.lower() == " ".join(found.split())


def test_any_accepted_answer_will_do():
    assert contains("I see two dogs.", ["a cat", "2 dogs"]) == 1
    assert exact("Two dogs!", ["a cat", "2 dogs"]) == 1
    assert contains("I see two dogs.", ["cat"]) == exact("I see two dogs.", ["2 dogs"]) == 0


def test_an_answer_is_contained_as_whole_words_only():
    assert contains("redder", ["red"]) == contains("it is near ed", ["are"]) == 0
    assert contains("it is red", ["red"]) == 1


@given(TEXT, TEXT.filter(str.strip))
def test_what_is_equal_is_contained(text: str, answer: str):
    assert contains(text, [answer]) >= exact(text, [answer])
    assert contains(answer, [answer]) == exact(answer, [answer]) == 1


def test_an_answer_that_is_only_an_article_is_compared_as_it_stands():
    assert exact("A", ["a"]) == 1
    assert exact("yes", ["a"]) == contains("yes it is", ["a"]) == 0


def test_no_accepted_answer_is_an_error():
    for score in (contains, exact, rouge_l):
        with pytest.raises(DataError, match="no accepted answer was given"):
            score("yes", [])


def test_unchanged_compares_what_was_said():
    assert (unchanged("Tirana", "Tirana"), unchanged("Tirana", "tirana")) == (1, 0)


def test_rouge_l_is_that_of_the_longest_common_subsequence():
    """LCS of "red circle on white" and "a small red circle" is 2 words of 4 and of 4."""
    assert rouge_l("red circle on white", ["a small red circle"]) == pytest.approx(0.5)
    assert rouge_l("red circle", ["blue square", "red circle"]) == 1
    assert rouge_l("", ["red circle"]) == 0


@pytest.mark.parametrize("text", ["красный круг", "红色", "café", "Ελλάδα"])
def test_rouge_l_reads_every_script(text: str):
    assert rouge_l(text, [text]) == 1
    assert rouge_l(text, ["red"]) == 0


@given(st.text(alphabet="abAB1 _.,'-", max_size=20), TEXT)
def test_rouge_l_of_ascii_is_that_of_the_package(text: str, answer: str):
    published = RougeScorer(["rougeL"]).score(answer, text)["rougeL"].fmeasure
    assert rouge_l(text, [answer]) == published


def test_fluency_is_the_weighted_entropy_of_bigrams_and_trigrams():
    """a b a b a: bigrams ab, ba twice each: 1 bit; trigrams aba twice, bab once."""
    trigrams = -(2 / 3 * log2(2 / 3) + 1 / 3 * log2(1 / 3))
    assert fluency("a b a b a") == pytest.approx((2 / 3 * 1 + 4 / 3 * trigrams) / 2)


def test_a_loop_has_no_fluency_and_is_seen_to_repeat():
    loop, text = "no " * 50, "the small cat sat on a mat and looked at two dogs in the rain"
    assert fluency(loop) == 0
    assert repeated(loop) > 0.95
    assert fluency(text) > 3
    assert repeated(text) == 0
    assert fluency("") == repeated("") == fluency("no") == 0


def test_scores_are_numbers_that_json_takes():
    scores = [score("a red circle", ["circle"]) for score in (contains, exact, rouge_l)]
    assert json.loads(json.dumps([*scores, fluency("a b c d"), repeated("a")])) is not None
