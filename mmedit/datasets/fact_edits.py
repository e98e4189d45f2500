"""Edit cases about facts without images: a country's capital, region or people
(`mmedit.datasets.facts`), for methods that locate a fact by its subject.

Request: the question about a country, with the country as `subject`, and the answer of another
country. Text generality: the same question in other wordings; the held-out wordings are in no
training case. Text locality is of two kinds: the same question about two other countries, which in
the test no case of any split edits or trains on, and the questions about the edited country that
`relations` leaves alone. None expects the new answer. With `known`, requests and locality ask only
what the base model answers right, in the original wording; other wordings are taken as they are.

Every country is for one part alone, by name in turns (`PARTS`): a sixth for locality, a sixth for
training, and the rest for the test. The methods that this dataset is for learn from no cases, so
most countries are tested, for long sequences of edits: 114 capitals, or 332 facts of all relations.
Each fact is edited once, so no edit contradicts another.

`answers: word` asks for "Tirana", as the embedded VLM was taught. A pretrained language model says
"The capital of Albania is Tirana.", but only in some wordings (`SENTENCE`). Asked "which city is
the capital of Albania?" it says "Tirana", and would also say the new capital in a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from mmedit.cases import Cases, EditCase, Example, Probe, Split
from mmedit.datasets.base import DatasetSettings
from mmedit.datasets.facts import PHRASINGS, Fact, Phrasings, choose, load_facts
from mmedit.datasets.known import Known, text_key
from mmedit.errors import ConfigError, DataError
from mmedit.progress import Progress

Relation = Literal["capital", "region", "people"]
Answers = Literal["word", "sentence"]
Part = Literal["locality", "train", "test"]
PARTS: tuple[Part, ...] = ("locality", "train", "test", "test", "test", "test")
"""The parts that countries are for, in the order of their names, again and again."""
OTHERS = 2
"""Other countries that each case's locality asks about, if there are so many."""
SENTENCE = Phrasings(
    original=PHRASINGS["capital"].original,
    further=(
        "Tell me, what is the capital of {subject}?",
        "Please answer: what is the capital of {subject}?",
    ),
    held_out=("Can you tell me what the capital of {subject} is?",),
)
"""The wordings of sentences. Of the capitals that the VLM "photo" answers right in the original
wording, it answers 79 %, 81 % and (held out) 72 % right in the others, with the same sentence.
"""
UNKNOWN = "the base model does not answer the request's question right"
UNASKED = "the base model was not asked the request's question"


class Facts(DatasetSettings):
    """The dataset's settings: which facts are edited, and how they are answered."""

    relations: tuple[Relation, ...] = ("capital",)
    """Relations that are edited: capital, region, people. Locality asks the others."""
    answers: Answers = "word"
    """"word": "Tirana"; "sentence", of capitals alone: "The capital of Albania is Tirana."."""
    known: Path | None = None
    """A file of `mmedit data known`; without it, edits change what the VLM may never have known."""

    def read(self, split: Split, *, limit: int | None, seed: int, progress: Progress) -> Cases:
        """Make a case of every fact of a split that is not for locality, or the first `limit` in a
        seeded order; with `known`, of those that the base model answers right. The edit of a fact
        depends on the seed alone. Raises ConfigError, DataError.
        """
        relations = self._relations()
        known = None if self.known is None else Known.read(self.known)
        maker = _CaseMaker(split, relations, self.answers, known, seed)
        facts = [fact for fact in part_facts(split) if fact.relation in relations]
        wanted = len(facts) if limit is None else min(limit, len(facts))
        cases, left_out = list[EditCase](), Counter[str]()
        for place in np.random.default_rng([seed, 0]).permutation(len(facts)):
            if len(cases) == wanted:
                break
            if reason := maker.reason_against(facts[place]):
                left_out[reason] += 1
            else:
                cases.append(maker.case(facts[place]))
            progress("reading cases", len(cases), wanted, "")
        if left_out and not cases:
            counts = ", ".join(f"{reason}: {n:,}" for reason, n in left_out.items())
            raise DataError(
                f"{self.known} leaves no case of the {split} split (facts by reason: {counts}); "
                f"ask the VLM more with: mmedit data known --dataset facts --split {split}"
            )
        return Cases(tuple(cases), dict(left_out))

    def questions(self, split: Split) -> Iterator[tuple[str, Example]]:
        """Yield every fact that cases of a split may edit or ask for locality, whatever their
        `relations`. Raises ConfigError.
        """
        self._relations()
        for fact in (*part_facts(split), *part_facts("locality")):
            if self.answers == "word" or fact.relation == "capital":
                example = _example(fact, self.answers)
                yield text_key(example), example

    def _relations(self) -> frozenset[Relation]:
        """Return what is edited. Raises ConfigError."""
        if not self.relations:
            raise ConfigError(f"dataset.relations is empty; name some of {', '.join(PHRASINGS)}")
        if self.answers == "sentence" and set(self.relations) != {"capital"}:
            raise ConfigError(
                f"dataset.relations is {list(self.relations)}; only capitals have sentences: leave "
                "it out, or choose dataset.answers=word"
            )
        return frozenset(self.relations)


@dataclass(frozen=True)
class _CaseMaker:
    """Makes the case of a fact, from the seed and the fact alone."""

    split: Split
    relations: frozenset[Relation]
    answers: Answers
    known: Known | None
    seed: int

    def reason_against(self, fact: Fact) -> str | None:
        """Return why a fact is not edited; None if it is."""
        if self._knows(fact):
            return None
        assert self.known is not None
        was_asked = text_key(_example(fact, self.answers)) in self.known.right
        return UNKNOWN if was_asked else UNASKED

    def case(self, fact: Fact) -> EditCase:
        """Return the case of a fact."""
        rng = np.random.default_rng([self.seed, 1, load_facts().index(fact)])
        others = {one.answer for one in part_facts(self.split) if one.relation == fact.relation}
        new = replace(fact, answer=choose(rng, sorted(others - {fact.answer})))
        wordings = _phrasings(fact.relation, self.answers)
        rephrased = wordings.further + (wordings.held_out if self.split == "test" else ())
        name = fact.subject.replace(" ", "-")
        return EditCase(
            id=f"facts-{self.split}-{fact.relation}-{name}",
            request=_example(new, self.answers),
            probes={
                Probe.TEXT_GENERALITY: tuple(_example(new, self.answers, w) for w in rephrased),
                Probe.TEXT_LOCALITY: tuple(
                    _example(one, self.answers)
                    for one in (*self._elsewhere(new, rng), *self._beside(new))
                ),
            },
        )

    def _elsewhere(self, new: Fact, rng: np.random.Generator) -> list[Fact]:
        """Draw facts of the edited relation: for the test about countries that no case edits, in
        training about other training countries, so that no test question is trained on.
        """
        possible = [
            fact
            for fact in part_facts("locality" if self.split == "test" else "train")
            if fact.relation == new.relation
            and fact.subject != new.subject
            and fact.answer != new.answer
            and self._knows(fact)
        ]
        return [possible[place] for place in rng.permutation(len(possible))[:OTHERS]]

    def _beside(self, new: Fact) -> list[Fact]:
        """Return the facts about the edited country that no case edits; sentences have none."""
        if self.answers == "sentence":
            return []
        return [
            fact
            for fact in part_facts(self.split)
            if fact.subject == new.subject
            and fact.relation not in self.relations
            and self._knows(fact)
        ]

    def _knows(self, fact: Fact) -> bool:
        return self.known is None or text_key(_example(fact, self.answers)) in self.known


@cache
def part_facts(part: Part) -> tuple[Fact, ...]:
    """Return the facts of a part. A country that the file has under a second name, with the same
    capital, is there once ("Myanmar", not "Burma").
    """
    capitals = dict[str, str]()
    for fact in load_facts():
        if fact.relation == "capital":
            capitals.setdefault(fact.answer, fact.subject)
    again = {
        fact.subject
        for fact in load_facts()
        if fact.relation == "capital" and capitals[fact.answer] != fact.subject
    }
    names = sorted({fact.subject for fact in load_facts()} - again)
    parts = {name: PARTS[place % len(PARTS)] for place, name in enumerate(names)}
    return tuple(fact for fact in load_facts() if parts.get(fact.subject) == part)


def _phrasings(relation: str, answers: Answers) -> Phrasings:
    return SENTENCE if answers == "sentence" else PHRASINGS[relation]


def _example(fact: Fact, answers: Answers, wording: str = "") -> Example:
    """Return the question about a fact, in its original wording unless another one is named."""
    return Example(
        prompt=fact.ask(wording or _phrasings(fact.relation, answers).original[0]),
        target=fact.sentence if answers == "sentence" else fact.answer,
        subject=fact.subject,
    )
