"""Scores of generated text, as strings: no tensors, one number per text.

    contains = [the text has an accepted answer as whole words]     exact = [they are equal]
    rouge_l  = 2PR / (P + R), P = LCS / words of the text, R = LCS / words of the answer
    fluency  = mean over n = 2, 3 of w_n H_n, w = (2/3, 4/3), H_n = -Σ_g p(g) log2 p(g) over
    n-grams g

Answers are normalised as the VQA evaluation does (Antol et al. 2015, "VQA: Visual Question
Answering", and its published evaluation code). ROUGE-L: Lin 2004. Fluency is "generation entropy"
of ROME (Meng et al. 2022, "Locating and Editing Factual Associations in GPT"): it is low for a
model that repeats itself after an edit. Generation is never mixed with teacher forcing: greedy text
may differ from the first token on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from math import log2
from typing import Any

from mmedit.errors import DataError

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_N_T = (
    "ain aren can couldn didn doesn don hadn hasn haven isn mightn mustn needn oughtn shan shouldn"
)
_VE = "could might must not should they we what where who would you"
_D = "he how it someone something there they where who you"
_LL = "how it somebody someone something they what who why you"
_RE = "there they what why you"
_S = "he how somebody someone that there what when where who why"
_TWO_OR_MORE = (
    "couldn't've hadn't've mightn't've shouldn't've wouldn't've he'd've it'd've she'd've "
    "somebody'd've someone'd've something'd've there'd've they'd've we'd've who'd've you'd've "
    "y'all'll y'all'd've 'ow's'at"
)
CONTRACTIONS = {
    **{
        word[:place] + word[place + 1 :]: word
        for word in _TWO_OR_MORE.split()
        for place, letter in enumerate(word)
        if letter == "'"
    },
    **{f"{word}t": f"{word}'t" for word in f"{_N_T} wasn weren won wouldn".split()},
    **{f"{word}ve": f"{word}'ve" for word in _VE.split()},
    **{f"{word}d": f"{word}'d" for word in _D.split()},
    **{f"{word}ll": f"{word}'ll" for word in _LL.split()},
    **{f"{word}re": f"{word}'re" for word in _RE.split()},
    **{f"{word}s": f"{word}'s" for word in _S.split()},
    "maam": "ma'am",
    "oclock": "o'clock",
    "twas": "'twas",
    "yall": "y'all",
    "somebody'd": "somebodyd",  # the wrong way round, as published
}
"""Words without one of their apostrophes, from the published table, in lower case."""
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_WORD = re.compile(r"\w+|[^\w\s]")
_LETTERS = re.compile(r"[^\W_]+")
ENTROPY_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def normalise(text: str) -> str:
    """Return an answer as the VQA evaluation compares it.

    It is in lower case, without punctuation and articles, with number words as digits and
    contractions with their apostrophe.

    >>> normalise("The  two dogs, arent they?")
    "2 dogs aren't they"
    """
    plain = text.replace("\n", " ").replace("\t", " ").strip()
    everywhere = bool(_COMMA_IN_NUMBER.search(plain))
    shown = plain
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in plain or f" {mark}" in plain
        shown = shown.replace(mark, "" if beside_space or everywhere else " ")
    words = (NUMBERS.get(word, word) for word in _PERIOD.sub("", shown).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def contains(text: str, answers: Sequence[str]) -> float:
    """Return 1 if the text contains an accepted answer as whole words, else 0; both normalised.

    >>> contains("It is a red circle.", ["circle", "disc"]), contains("encircled", ["circle"])
    (1.0, 0.0)
    """
    said = f" {_plain(text)} "
    return float(any(f" {answer} " in said for answer in _accepted(answers)))


def exact(text: str, answers: Sequence[str]) -> float:
    """Return 1 if the text is one of the accepted answers, else 0; both normalised.

    >>> exact("Two.", ["2"]), exact("two dogs", ["2"])
    (1.0, 0.0)
    """
    return float(_plain(text) in _accepted(answers))


def unchanged(base: str, edited: str) -> float:
    """Return 1 if base model and edited model generate the same text, else 0.

    This is locality under generation. Decoded texts are compared, so equal tokens are equal texts.
    """
    return float(base == edited)


def rouge_l(text: str, answers: Sequence[str]) -> float:
    """Return ROUGE-L (F1, no stemming) against the nearest accepted answer, 0 to 1. For captions.

    Words are runs of letters and digits of any script. rouge-score's own tokenizer drops all
    letters but a to z, so equal texts of other scripts would score 0.

    >>> round(rouge_l("a red circle on white", ["a small red circle"]), 3)
    0.667
    """
    _accepted(answers)
    return float(max(_scorer().score(answer, text)["rougeL"].fmeasure for answer in answers))


def fluency(text: str) -> float:
    """Return the weighted entropy of the text's bi- and trigrams in bits (ROME's `ngram_entropy`).

    It is meant for a continuation of about 100 tokens, and depends on the length of the text. Words
    and punctuation marks are the tokens. A text of fewer than three words has 0.

    >>> fluency("no no no no no no no"), round(fluency("the cat sat on the mat today"), 2)
    (0.0, 2.41)
    """
    words = _WORD.findall(text)
    weighted = [weight * _entropy(ngrams(words, n)) for n, weight in ENTROPY_WEIGHTS.items()]
    return sum(weighted) / len(weighted)


def repeated(text: str) -> float:
    """Return the share of the text's trigrams that occur earlier in it: near 1 in a loop.

    >>> repeated("no no no no no"), repeated("the cat sat on the mat")
    (0.6666666666666667, 0.0)
    """
    found = list(ngrams(_WORD.findall(text), 3))
    return 1 - len(set(found)) / len(found) if found else 0.0


def ngrams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    """Return all runs of n words."""
    return zip(*(words[start:] for start in range(n)), strict=False)


def _entropy(found: Iterable[tuple[str, ...]]) -> float:
    counts = Counter(found)
    total = counts.total()
    return -sum(n / total * log2(n / total) for n in counts.values()) + 0.0


def _accepted(answers: Sequence[str]) -> set[str]:
    if not answers:
        raise DataError("no accepted answer was given; generation is scored against at least one")
    return {_plain(answer) for answer in answers}


def _plain(text: str) -> str:
    """Return the text normalised, or in lower case if that leaves it empty.

    A text of articles and punctuation alone would be empty, and so part of every text.
    """
    return normalise(text) or text.strip().lower()


class _Words:
    """A tokenizer for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return _LETTERS.findall(text.lower())


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk

    return RougeScorer(["rougeL"], tokenizer=_Words())
