"""The probes of De-VQA: is an edit bound to its question and its picture, or to one of them alone?

T1, I1 are question and image of the edit, T2, I2 those of a similar question of the training split,
T3, I3 those of image locality. All must keep the base model's own answer:

    random image      T1 I3, T3 I1
    no image          T1, T2           (and T1 by itself: question alone)
    consistent image  T2 I2, T1 I2, T2 I1

The neighbour T2 I2 is the training question whose text is most similar: the cosine of TF-IDF
vectors, w = idf for a word that is there, idf = log(texts / texts with the word). Of equally
similar ones the id of the case picks one. So the neighbour depends on the data alone, and every run
asks the same. Its question is one that the edit leaves open, its image shows something else, and
its answer is not the edit's target. If the edit settles every question of the training split
(captions have one prompt for all), I2 is taken of any of them and no T2 is asked; T3 I1 is not
asked if the edit settles it.

De-VQA (AAAI 2026). Differences from the published code:

- T3 is the question of image locality; there it is the path of the image.
- T2 never asks what T1 asks, in the same or in other words; there T2 may be T1, and T2 I1 the edit.
- Neighbours with the edit's target are refused; there those with the base model's answer.
- Texts are compared by their words; there by a sentence encoder (MiniLM). A file may fix another
  choice (`dataset.neighbours`).
- The base model's own answer is forced; there the edit's target, except on T3 I1.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import log
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from scipy.sparse import csr_array

from mmedit.cases import EditCase, Example, Probe, image_name
from mmedit.errors import DataError
from mmedit.metrics.generation import normalise
from mmedit.progress import Progress
from mmedit.storage import write_atomically

MAKE = "Make it with: mmedit data neighbours --dataset NAME --out FILE"
FORM = 1
"""Version of the form of a file of neighbours."""
_FUNCTION_WORDS = (
    "a an the this that these those it its there here is are was were be been being do does did "
    "can could would will you your i we they he she his her their who whom whose what which where "
    "when why how name tell me say please give identify describe of in on at to from by for with "
    "as and or question short answer image picture photo photograph scene shown show shows seen "
    "see depicted featured represented visible present displayed pictured called known"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that do not tell what a question about a picture asks."""


class Topics(Protocol):
    """The knowledge of a dataset about its questions and images."""

    def settles(self, prompt: str, other: str) -> bool:
        """Return whether an edit of one question settles another one about the same image."""
        ...

    def shows(self, image: Path) -> str:
        """Return what an image shows, as edits tell things apart."""
        ...


class Place(NamedTuple):
    """A question of the training split: its prompt and the name of its image."""

    prompt: str
    image: str | None


@dataclass(frozen=True)
class Neighbour:
    """The similar question of a case."""

    example: Example
    is_open: bool
    """Whether the edit leaves its question open, so that it may be asked about the edit's image."""


def content_words(prompt: str) -> frozenset[str]:
    """Return the words that tell what a question asks.

    >>> sorted(content_words("What color is the cat in the picture?"))
    ['cat', 'color']
    """
    return frozenset(normalise(prompt).split()) - FUNCTION_WORDS


def same_question(prompt: str, other: str) -> bool:
    """Return whether two questions may ask the same in other words: all words of one that tell what
    it asks are in the other.

    >>> same_question("What city is shown here?", "Which city is in the picture?")
    True
    >>> same_question("What color is the cat?", "What color is the dog?")
    False
    """
    first, second = content_words(prompt), content_words(other)
    return first <= second or second <= first


class Neighbours:
    """The training questions with an image, searched by similarity."""

    def __init__(self, questions: Iterable[Example], topics: Topics) -> None:
        self._topics = topics
        self._by_text: dict[str, list[Example]] = {}
        for example in questions:
            if isinstance(example.image, Path):
                self._by_text.setdefault(example.prompt, []).append(example)
        if not self._by_text:
            raise DataError(
                "the training split has no question about an image; the probes of De-VQA "
                "(dataset.probes=devqa) need them: leave devqa out"
            )
        self._texts = tuple(self._by_text)
        words = [_words(text) for text in self._texts]
        counts = Counter(chain.from_iterable(words))
        self._columns = {word: column for column, word in enumerate(counts)}
        self._idf = np.array([log(len(words) / counts[word]) for word in counts])
        rows = np.repeat(np.arange(len(words)), [len(found) for found in words])
        columns = np.array([self._columns[word] for word in chain.from_iterable(words)], dtype=int)
        weights = self._idf[columns]
        lengths = np.sqrt(np.bincount(rows, weights**2, minlength=len(words)))
        shares = weights / np.where(lengths > 0, lengths, 1)[rows]
        self._vectors = csr_array((shares, (rows, columns)), shape=(len(words), len(counts)))
        self._ranked: dict[str, tuple[str, ...]] = {}

    def nearest(self, case: EditCase) -> Neighbour | None:
        """Return the neighbour of a case; None if no training question can be one."""
        edit = _Edit.of(case, self._topics)
        texts = self._by_similarity(case.request.prompt)
        for must_be_open in (True, False):
            for text in texts:
                if must_be_open and edit.settles(text):
                    continue
                found = self._pick(text, edit, case.id)
                if found is not None:
                    return Neighbour(found, is_open=must_be_open)
        return None

    def at(self, place: Place, case: EditCase) -> Neighbour:
        """Return the training question that a file names. Raises DataError if there is none."""
        for example in self._by_text.get(place.prompt, ()):
            if image_name(example) == place.image:
                edit = _Edit.of(case, self._topics)
                return Neighbour(example, is_open=not edit.settles(place.prompt))
        raise DataError(
            f"the neighbour of {case.id!r} asks {place.prompt!r} about {place.image}, which the "
            f"training split does not ask. {MAKE}"
        )

    def _by_similarity(self, prompt: str) -> tuple[str, ...]:
        """Return the training texts, the most similar one first, ties in their order."""
        if prompt not in self._ranked:
            known = [self._columns[word] for word in _words(prompt) if word in self._columns]
            asked = np.zeros(len(self._columns))
            asked[known] = self._idf[known]  # its length changes no order
            order = np.argsort(-np.round(self._vectors @ asked, 9), kind="stable")
            self._ranked[prompt] = tuple(self._texts[place] for place in order)
        return self._ranked[prompt]

    def _pick(self, text: str, edit: _Edit, case: str) -> Example | None:
        """Return one of the possible questions with this text, by the id of the case."""
        examples = self._by_text[text]
        digest = hashlib.blake2b(case.encode(), digest_size=8).digest()
        start = int.from_bytes(digest, "big") % len(examples)
        mixed = (*examples[start:], *examples[:start])
        return next((example for example in mixed if edit.allows(example)), None)


def _words(text: str) -> list[str]:
    """Return the distinct words of a text, in their order."""
    return list(dict.fromkeys(normalise(text).split()))


@dataclass(frozen=True)
class _Edit:
    """The parts of an edit that its neighbour must differ from."""

    prompts: tuple[str, ...]
    shown: frozenset[str]
    targets: frozenset[str]
    topics: Topics

    @classmethod
    def of(cls, case: EditCase, topics: Topics) -> _Edit:
        """Return what a case edits: its request, and its generality probes."""
        followed = [probe for probe in case.probes if probe.value.endswith("_generality")]
        asked = [case.request, *(e for probe in followed for e in case.probes[probe])]
        return cls(
            prompts=tuple(dict.fromkeys(example.prompt for example in asked)),
            shown=frozenset(topics.shows(e.image) for e in asked if isinstance(e.image, Path)),
            targets=frozenset(map(normalise, case.request.accepted)),
            topics=topics,
        )

    def settles(self, prompt: str) -> bool:
        return any(self.topics.settles(own, prompt) for own in self.prompts)

    def allows(self, example: Example) -> bool:
        assert isinstance(example.image, Path)
        shown = self.topics.shows(example.image)
        return shown not in self.shown and normalise(example.target) not in self.targets


def with_devqa(
    cases: Sequence[EditCase],
    neighbours: Neighbours,
    topics: Topics,
    *,
    chosen: Mapping[str, Place],
    progress: Progress,
) -> tuple[EditCase, ...]:
    """Return the cases with the probes of De-VQA where the request has an image.

    `chosen` fixes neighbours by the id of the case; the others are searched.
    """
    found = []
    for done, case in enumerate(cases):
        if case.request.image is not None:
            place = chosen.get(case.id)
            near = neighbours.at(place, case) if place else neighbours.nearest(case)
            case = replace(case, probes={**case.probes, **_probes(case, near, topics)})
        found.append(case)
        progress("finding similar questions", done + 1, len(cases), "")
    return tuple(found)


def _probes(
    case: EditCase, near: Neighbour | None, topics: Topics
) -> dict[Probe, tuple[Example, ...]]:
    """Return the probes of one case. The first example of each is the one that editors train on.
    None has the edit's own target, so that no training forces it.
    """
    request = case.request
    second = near.example if near else None
    third = next(iter(case.probes.get(Probe.IMAGE_LOCALITY, ())), None)
    other = next((e.target for e in (second, third) if e), request.target)
    alone = Example(prompt=request.prompt, target=other)
    random, unseen, consistent = list[Example](), [alone], list[Example]()
    if third is not None:
        random.append(replace(third, prompt=request.prompt))
        if not _Edit.of(case, topics).settles(third.prompt):
            random.append(replace(third, image=request.image))
    if near is not None and second is not None:
        if near.is_open:
            unseen.append(replace(second, image=None))
            consistent.append(second)
        consistent.append(replace(second, prompt=request.prompt))
        if near.is_open:
            consistent.append(replace(second, image=request.image))
    return {
        Probe.RANDOM_IMAGE: tuple(random),
        Probe.NO_IMAGE: tuple(unseen),
        Probe.CONSISTENT_IMAGE: tuple(consistent),
        Probe.QUESTION_ALONE: (alone,),
    }


def write_neighbours(places: Mapping[str, Place], file: Path) -> None:
    """Write a file of neighbours, whole or not at all. Raises RunError."""
    content = {"form": FORM, "neighbours": {name: p._asdict() for name, p in places.items()}}
    write_atomically(file, json.dumps(content, ensure_ascii=False, indent=0).encode())


def parse_neighbours(text: str, file: Path) -> dict[str, Place]:
    """Return the neighbours that the text of a file fixes, by the id of the case. Raises DataError
    if it is of another form.
    """
    try:
        content = json.loads(text)
        if content["form"] != FORM:
            raise ValueError(f"form {content['form']!r}, expected {FORM}")
        return {str(case): Place(**place) for case, place in content["neighbours"].items()}
    except (AttributeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} is not a file of neighbours ({type(error).__name__}: {error}). {MAKE}"
        ) from error
