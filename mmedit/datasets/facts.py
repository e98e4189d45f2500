"""Facts without images that the embedded VLM knows: countries, their capitals, regions and peoples.

They are from the PyPI package countryinfo 1.0.1 (MIT); `scripts/embedded_vlm/build_facts.py` writes
them to `assets/facts.json`, unchanged. They are text-locality probes, where only a *change* of the
answer counts, so a wrong fact does no harm.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TypeVar

import numpy as np

from mmedit.cases import Example, Split


@dataclass(frozen=True, kw_only=True)
class Phrasings:
    """The wordings of one kind of question. `{thing}` is "a red shape" or "a circle"; `{bare}` is
    the same without "a".
    """

    original: tuple[str, ...]
    further: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def train(self) -> tuple[str, ...]:
        return self.original + self.further


PHRASINGS: dict[str, Phrasings] = {
    "capital": Phrasings(
        original=("what is the capital of {subject}?",),
        further=(
            "which city is the capital of {subject}?",
            "name the capital of {subject}.",
            "the capital of {subject} is which city?",
        ),
        held_out=("tell me the capital of {subject}.",),
    ),
    "region": Phrasings(
        original=("in which region is {subject}?",),
        further=(
            "which region is {subject} in?",
            "name the region of {subject}.",
            "tell me which region contains {subject}.",
        ),
        held_out=("what is the region of {subject}?",),
    ),
    "people": Phrasings(
        original=("what are people from {subject} called?",),
        further=(
            "what do you call people from {subject}?",
            "name the people of {subject}.",
            "tell me what people from {subject} are called.",
        ),
        held_out=("what is the name of people from {subject}?",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A fact, for instance that the capital of Albania is Tirana."""

    relation: str
    subject: str
    answer: str

    def ask(self, phrasing: str) -> str:
        return phrasing.format(subject=self.subject)

    @property
    def sentence(self) -> str:
        """The answer as a whole sentence, of a capital: "The capital of Albania is Tirana."."""
        return f"The capital of {self.subject} is {self.answer}."


@cache
def load_facts() -> tuple[Fact, ...]:
    """Return all facts, in the order of the file."""
    text = resources.files("mmedit").joinpath("assets/facts.json").read_text(encoding="utf-8")
    return tuple(Fact(**fact) for fact in json.loads(text))


Option = TypeVar("Option")

TEST_COUNTRIES = 5
"""One country in so many, by name, is for the test split's text locality alone."""


def unrelated_fact(rng: np.random.Generator, split: Split) -> Example:
    """Draw a fact of a split, in one of its training wordings."""
    fact = choose(rng, split_facts(split))
    wording = choose(rng, PHRASINGS[fact.relation].train)
    return Example(prompt=fact.ask(wording), target=fact.answer)


@cache
def fact_questions(split: Split) -> tuple[Example, ...]:
    """Return all facts of a split in all training wordings: what `unrelated_fact` draws from."""
    return tuple(
        Example(prompt=fact.ask(wording), target=fact.answer)
        for fact in split_facts(split)
        for wording in PHRASINGS[fact.relation].train
    )


def capital_sentences(split: Split) -> tuple[Example, ...]:
    """Return the capitals of a split, as whole sentences: a pretrained language model that was not
    taught to answer in one word says "The capital of Kenya is Nairobi."
    """
    return tuple(
        Example(prompt=fact.ask(wording), target=fact.sentence)
        for fact in split_facts(split)
        if fact.relation == "capital"
        for wording in PHRASINGS["capital"].train
    )


@cache
def split_facts(split: Split) -> tuple[Fact, ...]:
    """Return the facts of a split."""
    countries = sorted({fact.subject for fact in load_facts()})
    test = set(countries[::TEST_COUNTRIES])
    return tuple(fact for fact in load_facts() if (fact.subject in test) == (split == "test"))


def choose(rng: np.random.Generator, options: list[Option] | tuple[Option, ...]) -> Option:
    """Draw one of the options."""
    return options[int(rng.integers(len(options)))]
