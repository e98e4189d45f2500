"""Scores of generated text, as strings: no tensors, one number per text.

    contains = [the words of an accepted answer stand in the text, one after another]
    exact    = [the text has the words of an accepted answer and no others]
    rouge_l  = 2PR / (P + R), P = LCS / words of the text, R = LCS / words of the answer
    fluency  = mean over n = 2, 3 of w_n H_n, w = (2/3, 4/3), H_n = -Σ_g p(g) log2 p(g) over
    n-grams g

Number words, articles and contractions are treated as the VQA evaluation does (Antol et al. 2015,
"VQA: Visual Question Answering", and its published evaluation code); `mmedit.metrics.words` cuts
the words. ROUGE-L: Lin 2004. Fluency is "generation entropy" of ROME (Meng et al. 2022, "Locating
and Editing Factual Associations in GPT"): it is low for a model that repeats itself after an edit.
Generation is never mixed with teacher forcing: greedy text may differ from the first token on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from math import log2
from typing import Any

from mmedit.errors import DataError
from mmedit.metrics.words import (
    ARTICLES,
    folded,
    pieces_of,
    without_articles,
    without_outer_signs,
    words_of,
)

_WORD = re.compile(r"\w+|[^\w\s]")
ENTROPY_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def normalise(text: str) -> str:
    """Return the words that `contains` and `exact` compare, with a space between.

    >>> normalise("The  two dogs, arent they?"), normalise("**black-white** (1,000)")
    ("2 dogs aren't they", 'black white 1000')
    """
    return " ".join(without_articles(words_of(text)))


def contains(text: str, answers: Sequence[str]) -> float:
    """Return 1 if the words of an accepted answer stand in the text one after another, else 0.

    >>> contains("It is a **red circle**.", ["red circle"]), contains("encircled", ["circle"])
    (1.0, 0.0)
    """
    return float(any(_is_in(answer, text) for answer in _accepted(answers)))


def exact(text: str, answers: Sequence[str]) -> float:
    """Return 1 if the text has the words of an accepted answer and no others, else 0.

    >>> exact("**Two**.", ["2"]), exact("two dogs", ["2"])
    (1.0, 0.0)
    """
    return float(any(_is_all_of(answer, text) for answer in _accepted(answers)))


def unchanged(base: str, edited: str) -> float:
    """Return 1 if base model and edited model generate the same text, else 0.

    This is locality under generation. Decoded texts are compared, so equal tokens are equal texts.
    """
    return float(base == edited)


def leak(base: str, edited: str, target: str) -> float:
    """Return 1 if the words of an edit's target stand in the edited model's answer, and did not
    stand in the base model's; else 0. For questions that the edit says nothing about.

    >>> leak("a cat", "It is a dog.", "dog"), leak("a dog", "the dog", "dog")
    (1.0, 0.0)
    """
    return float(_is_in(target, edited) and not _is_in(target, base))


def rouge_l(text: str, answers: Sequence[str]) -> float:
    """Return ROUGE-L (F1, no stemming) against the nearest accepted answer, 0 to 1. For captions.

    The words are `pieces_of` the text, in any script. rouge-score's own tokenizer drops all letters
    but a to z, so equal texts of other scripts would score 0.

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


def _accepted(answers: Sequence[str]) -> Sequence[str]:
    if not answers:
        raise DataError("no accepted answer was given; generation is scored against at least one")
    return answers


def _is_in(answer: str, text: str) -> bool:
    """Return whether the answer's words stand in the text; of an answer without words, its marks.

    An article that ends an answer is a letter ("vitamin A", option A): then articles count.
    """
    expected, found = words_of(answer), words_of(text)
    if not expected:
        return _marks(answer) in _marks(text)
    if expected[-1] not in ARTICLES:
        expected, found = without_articles(expected), without_articles(found)
    return f" {' '.join(expected)} " in f" {' '.join(found)} "


def _is_all_of(answer: str, text: str) -> bool:
    """Return whether the answer's words are all of the text's; signs around the text do not count.

    A text is all of an answer without words if it has none either.
    """
    expected, found = words_of(answer), words_of(text)
    if not expected:
        return not found and _marks(answer) in _marks(text)
    if expected[-1] not in ARTICLES:
        expected, found = without_articles(expected), without_articles(found)
    return expected in (found, without_outer_signs(found))


def _marks(text: str) -> str:
    """Return the text without white space, as answers that are only marks are compared."""
    return "".join(folded(text).split()) or text


class _Words:
    """A tokenizer for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return pieces_of(text) or list(_marks(text).strip())


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk

    return RougeScorer(["rougeL"], tokenizer=_Words())
