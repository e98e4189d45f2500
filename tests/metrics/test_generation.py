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
        ("Ive", "ive"),  # the published table says "Ive", and words are in lower case by then
        ("Einstein's", "einstein s"),
        ("black-white", "black white"),
        ("black - white", "black white"),
        ("yes!", "yes"),
        ('"stop"', "stop"),
        ("", ""),
        ("the", ""),
    ],
)
def test_number_words_articles_and_contractions_are_those_of_the_vqa_evaluation(
    text: str, normalised: str
):
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


AROUND = (
    "{}", "{}.", "**{}**", "*{}*", "`{}`", "'{}'", "“{}”.", "({})", "[{}]", "{}:", "{}…", "{}—so",
    "~~{}~~", "<b>{}</b>", "$\\boxed{{{}}}$", "Answer:{}", "\n- {}\n", "，{}。", "It is {}!",
    "{}, not 1,000 black-and-white ones",
)  # fmt: skip
ANSWERS = (
    "circle", "black-and-white", "A", "the", "1,000", "3.5", ".5", "p.m.", "isn't", "St. Mary's",
    "J. R. R. Tolkien", "Beyoncé", "Straße", "C++", "C#", "+", "50%", "☺",
    "蓝色", "東京タワー", "สีน้ำเงิน", "أزرق", "हिन्दी", "ελληνικά",
)  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_found_whatever_marks_stand_around_it(answer: str):
    for around in AROUND:
        assert contains(around.format(answer), [answer]) == 1, around.format(answer)


@pytest.mark.parametrize("answer", ANSWERS)
def test_marks_around_the_whole_text_do_not_make_another_answer(answer: str):
    for around in ("{}", "{}.", "**{}**", "'{}'", "“{}”", "({})", "`{}`", "\n{}\n"):
        assert exact(around.format(answer), [answer]) == 1, around.format(answer)
    assert exact(f"It is {answer}", [answer]) == 0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("I do not know", "A"),
        ("Vitamin C", "Vitamin A"),
        ("It is C.", "C++"),
        ("It is C++.", "C"),
        ("yes", "?"),
        ("it is 50", "50%"),
        ("It is 3.5", "5"),
        ("I don't know", "Don"),
        ("cafe", "café"),
        ("ｃａｆｅ", "café"),
        ("青色", "色青"),
        ("Mary", "Mary's"),
        ("कम", "की"),
    ],
)
def test_an_answer_is_not_found_in_a_part_of_it_or_in_another(text: str, answer: str):
    assert contains(text, [answer]) == exact(text, [answer]) == 0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Beyonce\u0301", "Beyonc\u00e9"),
        ("ＡＢＣ", "abc"),
        ("٣", "3"),
        ("isn’t", "isnt"),
        ("STRASSE", "Straße"),
        ("soft\u00adware", "software"),
        ("❤\ufe0f", "❤"),
        ("ΟΔΟΣ", "οδος"),
    ],
)
def test_two_ways_to_write_the_same_text_are_equal(text: str, answer: str):
    assert exact(text, [answer]) == exact(answer, [text]) == 1


def test_scripts_without_spaces_are_found_as_a_run_of_characters():
    assert (
        contains("它是蓝色的圆。", ["蓝色"])
        == contains("それは東京タワーです", ["東京タワー"])
        == 1
    )
    assert contains("มันเป็นสีน้ำเงินครับ", ["สีน้ำเงิน"]) == 1
    assert contains("它是红色的圆。", ["蓝色"]) == 0


def test_a_letter_that_is_an_article_is_an_answer():
    for text in ("A", "A.", "(A)"):
        assert exact(text, ["A"]) == exact(text.replace("A", "B"), ["B"]) == 1
    for text in ("Option A", "The answer is A.", "A: a red circle"):
        assert contains(text, ["a"]) == 1
    assert exact("yes", ["a"]) == contains("yes it is", ["a"]) == 0


@given(st.text(max_size=12).filter(str.strip), st.text(max_size=12))
def test_any_text_is_its_own_answer(answer: str, text: str):
    assert exact(answer, [answer]) == contains(answer, [answer]) == 1
    assert contains(text, [answer]) >= exact(text, [answer])


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


@given(
    st.text(alphabet="abAB1 _.,'-", max_size=20),
    TEXT.filter(lambda text: any(map(str.isalnum, text))),
)
def test_rouge_l_of_ascii_is_that_of_the_package(text: str, answer: str):
    published = RougeScorer(["rougeL"]).score(answer, text)["rougeL"].fmeasure
    assert rouge_l(text, [answer]) == published


@pytest.mark.parametrize(
    ("text", "answer"), [("**蓝色**", "蓝色"), ("cafe\u0301", "café"), ("+", "+")]
)
def test_rouge_l_cuts_words_as_contains_does(text: str, answer: str):
    assert rouge_l(text, [answer]) == 1


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
