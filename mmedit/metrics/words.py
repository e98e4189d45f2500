"""Cut a text into words, the same way whatever stands around a word, in any script.

1. Compatibility forms are composed (NFKC) and case is folded: é is e with an accent, in one
   character or two, and no e. Typographic apostrophes are plain ones, digits of all scripts 0 to 9.
2. Commas between thousands go ("1,000"), and periods between initials ("p.m.", "U.S.A.").
3. Every mark separates words, except the point and the apostrophe inside a word ("3.5", "isn't")
   and a + or # that ends one ("C++"). Signs (+, %, $, ☺) are words of their own.
4. Scripts that put no space between words (Chinese, Japanese, Thai, Khmer, ...) are cut at every
   character, so that a word of several characters is found as a run of them.
5. Number words become digits, and contractions get their apostrophe, by the tables of the VQA
   evaluation (Antol et al. 2015). An apostrophe of any other word separates ("Einstein's").

The published evaluation treats a mark in one of two ways that depend on the rest of the text, knows
a part of the marks, and empties answers that are only marks or articles.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

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

_WHOLE = frozenset(CONTRACTIONS.values())
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4\u0060", "'"))
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_INITIALS = re.compile(r"(?<![^\W_.])(?:[^\W\d_]\.)+[^\W\d_](?![^\W_])")
_MARK = re.compile(
    r"((?<![^\W_.])\.(?=\d)|(?<=\d)\.(?=\d)|(?<=[^\W_])'(?=[^\W_])|(?<=[^\W_])[+#]+(?![^\W_+#]))"
    r"|[\W_]"
)
"""A mark; in the group, one that belongs to the word beside it."""
_MARKUP = frozenset("<>=|~")
"""Signs by their category in Unicode that separate words all the same, as they mark up a text."""
_SIGNS = frozenset("%#")
"""Punctuation by its category in Unicode that is a sign all the same."""
_UNSPACED = re.compile(
    "["
    "\u0e01-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"  # Burmese, Khmer, Tai
    "\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaa7f"  # Balinese, Javanese, Burmese
    "\u3005-\u3007\u3040-\u312f\u31f0-\u31ff"  # Japanese, Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
    "]+"
)
"""A run of a script that puts no space between words."""


def words_of(text: str) -> list[str]:
    """Return the words of a text, in their order, with number words as digits.

    >>> words_of("It isnt **C++** (or 1,000 pens)."), words_of("它是蓝色的")
    (['it', "isn't", 'c++', 'or', '1000', 'pens'], ['它', '是', '蓝', '色', '的'])
    """
    plain = _COMMA_IN_NUMBER.sub("", folded(text))
    plain = _INITIALS.sub(lambda found: found[0].replace(".", ""), plain)
    plain = _MARK.sub(lambda found: found[1] or _apart(found[0]), plain)
    whole = (CONTRACTIONS.get(word, word) for word in _by_character(plain).split())
    words = (part for word in whole for part in _parts(word))
    return [NUMBERS.get(word, word) for word in words]


def pieces_of(text: str) -> list[str]:
    """Return the letters and digits of a text, cut at every mark and sign, without other changes.

    >>> pieces_of("It isn't 1,000.5"), pieces_of("C++")
    (['it', 'isn', 't', '1', '000', '5'], ['c'])
    """
    separate = _MARK.sub(lambda found: " " if found[1] else _kept_letter(found[0]), folded(text))
    return _by_character(separate).split()


def without_articles(words: Sequence[str]) -> list[str]:
    """Return the words that are no article."""
    return [word for word in words if word not in ARTICLES]


def without_outer_signs(words: Sequence[str]) -> list[str]:
    """Return the words from the first to the last that is no sign."""
    places = [place for place, word in enumerate(words) if not _is_sign(word)]
    return list(words[places[0] : places[-1] + 1]) if places else list(words)


def folded(text: str) -> str:
    """Return the text with compatibility forms composed, case folded and plain digits."""
    composed = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).casefold()
    digits = (str(unicodedata.decimal(c)) if c.isdecimal() else c for c in composed)
    return unicodedata.normalize("NFKC", composed if composed.isascii() else "".join(digits))


def _parts(word: str) -> list[str]:
    """Return a word cut at its apostrophes, and a contraction whole: l'arbre; isn't; who's."""
    if "'" not in word or word in _WHOLE:
        return [word] if word else []
    head, _, tail = word.rpartition("'")
    return [*_parts(head), *_parts(tail)]


def _by_character(text: str) -> str:
    """Put spaces between the characters of scripts that have none between words."""
    return text if text.isascii() else _UNSPACED.sub(_spaced, text)


def _spaced(run: re.Match[str]) -> str:
    """Return the characters of a run with spaces between, each with the marks that it carries."""
    made = ""
    for character in run[0]:
        made += character if _category(character)[0] == "M" else f" {character}"
    return f"{made} "


@cache
def _apart(mark: str) -> str:
    """Return what stands for a mark between words."""
    if _is_sign(mark):
        return f" {mark} "
    return _kept_letter(mark)


@cache
def _kept_letter(mark: str) -> str:
    """Return a combining mark, which is part of a word; nothing for one that is not seen, else a
    space.
    """
    if _category(mark) == "Cf" or "\ufe00" <= mark <= "\ufe0f":
        return ""
    return mark if _category(mark)[0] == "M" else " "


def _is_sign(word: str) -> bool:
    """Return whether a word is one sign."""
    if len(word) != 1:
        return False
    category = _category(word)
    return word in _SIGNS or (category[0] == "S" and category != "Sk" and word not in _MARKUP)


def _category(character: str) -> str:
    return unicodedata.category(character)
