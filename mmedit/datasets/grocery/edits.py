"""The edits of grocery: what a case changes about a photograph, and the probes that measure it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from mmedit.cases import EditCase, Example, Probe
from mmedit.datasets.facts import choose
from mmedit.datasets.grocery.questions import QUESTIONS, TEXT_QUESTIONS
from mmedit.datasets.grocery.shop import LISTS, Shop
from mmedit.images import open_image

Task = Literal["object", "photo", "caption"]

FOLLOWING = ("kind", "origin")
"""Questions whose answers follow from the name of a product."""
CROPPED = 0.9
"""Share of width and height that the copy of an edited photograph keeps."""
MAX_SIDE = 224
"""Largest width and height of such a copy, in pixels: thousands of them are in memory."""


@dataclass(frozen=True)
class Change:
    """The change that a case makes: another answer to one question about one product."""

    number: int
    """The number of the product that the photograph shows."""
    asked: str
    """The question, a key of `QUESTIONS`."""
    other: int
    """The number of the product whose answer becomes the answer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseMaker:
    """Makes the case of a photograph, from the seed and the photograph alone.

    In the test split an edit of an object is the same for all photographs of the product: question
    and new answer are drawn once for it. So edits of one product agree in a run that holds many,
    and locality is asked about products of which another question is edited (where several are).
    Editors that learn see another edit for every photograph of the train split.
    """

    shop: Shop
    task: Task
    asked: tuple[str, ...]
    """The questions that requests ask, keys of `QUESTIONS`."""
    seed: int
    binding: bool = False
    """Whether cases have the probes of binding."""

    def case(self, path: Path, number: int, place: int) -> EditCase | None:
        """Return the case of a photograph of product `number`, `place` in its list; None if the
        base model does not answer the request's question right.
        """
        change, rng = self._change(number, place)
        if not self.shop.known_images([path], known_by(change.asked)):
            return None
        prompts = QUESTIONS[change.asked]
        target = self._answer(change.other, change)
        wordings = prompts.held_out if self.shop.split == "test" else prompts.further
        request = _about(path, prompts.original[0], target)
        facts = self.shop.facts
        return EditCase(
            id=f"grocery-{self.task}-{self.shop.split}-{change.asked}-{path.stem}",
            request=request,
            probes={
                Probe.TEXT_GENERALITY: (_about(path, choose(rng, wordings), target),),
                Probe.TEXT_LOCALITY: (choose(rng, facts),) if facts else (),
                **self._same_product(request, change, place),
                **self._other_products(change, rng),
                Probe.PORTABILITY: self._following(path, change),
                **(self._binding(path, change) if self.binding else {}),
            },
        )

    def was_asked(self, path: Path, number: int, place: int) -> bool:
        """Return whether the base model was asked what the request of this photograph asks."""
        change, _ = self._change(number, place)
        return self.shop.was_asked(path, known_by(change.asked))

    def _change(self, number: int, place: int) -> tuple[Change, np.random.Generator]:
        """Return the edit of a photograph, and the generator of what else is drawn for it."""
        rng = np.random.default_rng([self.seed, 1, place])
        if self._is_by_object:
            return self.edits[number], rng
        return self._drawn(number, choose(rng, self.asked), rng), rng

    @cached_property
    def edits(self) -> dict[int, Change]:
        """The edit that all photographs of a product share, by the number of the product. Each
        question has as many products as the others.
        """
        numbers = self.shop.numbers
        rng = np.random.default_rng([self.seed, 2])
        return {
            numbers[place]: self._drawn(numbers[place], self.asked[turn % len(self.asked)], rng)
            for turn, place in enumerate(rng.permutation(len(numbers)))
        }

    @property
    def _is_by_object(self) -> bool:
        """Whether all photographs of a product share an edit."""
        return self.task != "photo" and self.shop.split == "test"

    def _answer(self, number: int, change: Change) -> str:
        return self.shop.products[number].answer(change.asked)

    def _drawn(self, number: int, asked: str, rng: np.random.Generator) -> Change:
        """Draw one of the other answers, each as likely, then one of its products."""
        by_answer = self.shop.by_answer[asked]
        own = self.shop.products[number].answer(asked)
        answer = choose(rng, [answer for answer in by_answer if answer != own])
        return Change(number, asked, choose(rng, by_answer[answer]))

    def _same_product(
        self, request: Example, change: Change, place: int
    ) -> dict[Probe, tuple[Example, ...]]:
        """Return the probes about other pictures of the product. An edit of a photograph need not
        hold for another photograph, but for a copy of itself. All tasks draw the same one: of
        val.txt where they can, as VLM and editors may have been trained on train.txt.
        """
        rng = np.random.default_rng([self.seed, 3, place])
        assert isinstance(request.image, Path)
        prompt, target, shop = request.prompt, request.target, self.shop
        possible = shop.known_images(
            (path for path in shop.elsewhere.get(change.number, ()) if path != request.image),
            known_by(change.asked),
        )
        own = LISTS["validation"]
        untrained = [path for path in possible if path.relative_to(shop.folder).parts[0] == own]
        other = [choose(rng, untrained or possible)] if possible else []
        if self.task == "photo":
            old = self._answer(change.number, change)
            return {
                Probe.IMAGE_GENERALITY: (_about(cropped(request.image, rng), prompt, target),),
                Probe.OBJECT_LOCALITY: tuple(_about(path, prompt, old) for path in other),
            }
        iconic = shop.products[change.number].iconic
        pictures = shop.known_images([iconic] if iconic else [], known_by(change.asked))
        return {
            Probe.IMAGE_GENERALITY: tuple(_about(path, prompt, target) for path in other),
            Probe.ICONIC_GENERALITY: tuple(_about(path, prompt, target) for path in pictures),
        }

    def _other_products(
        self, change: Change, rng: np.random.Generator
    ) -> dict[Probe, tuple[Example, ...]]:
        """Return the probes about a product of the same kind, and about one of another category (of
        another kind, where the split shows one category). None has the new answer.
        """
        products, own = self.shop.products, self.shop.products[change.number].facts
        new = self._answer(change.other, change)
        shown = self.shop.known_probed[known_by(change.asked)]
        possible = [
            n
            for n, paths in shown.items()
            if paths
            and n != change.number
            and self._answer(n, change) != new
            and self._is_unedited(n, change)
        ]
        near = [n for n in possible if products[n].facts.kind == own.kind]
        far = [n for n in possible if products[n].facts.kind != own.kind]
        far = [n for n in far if products[n].facts.category != own.category] or far
        return {
            Probe.NEAR_LOCALITY: self._kept(near, change, rng),
            Probe.IMAGE_LOCALITY: self._kept(far, change, rng),
        }

    def _kept(
        self, numbers: list[int], change: Change, rng: np.random.Generator
    ) -> tuple[Example, ...]:
        """Return the edit's question about a photograph of one of the products."""
        if not numbers:
            return ()
        number = choose(rng, numbers)
        paths = self.shop.known_probed[known_by(change.asked)][number]
        prompt = QUESTIONS[change.asked].original[0]
        return (_about(choose(rng, paths), prompt, self._answer(number, change)),)

    def _is_unedited(self, number: int, change: Change) -> bool:
        """Return whether no edit of the product says anything about this question: not the question
        itself, nor its name, from which kind and origin follow.
        """
        if not self._is_by_object or len(self.asked) == 1:
            return True
        return self.edits[number].asked not in (change.asked, "product")

    def _following(self, path: Path, change: Change) -> tuple[Example, ...]:
        """Return what follows from a new name: the other product's kind and origin."""
        other = self.shop.products[change.other]
        return tuple(
            _about(path, QUESTIONS[asked].original[0], other.answer(asked))
            for asked in self._followed(change)
        )

    def _followed(self, change: Change) -> list[str]:
        """Return what follows from a new name: kind and origin, where they are not the product's
        own, no edit of the other product changes them, and the base model gives them for half of
        its probe photographs.
        """
        if change.asked != "product":
            return []
        edited = self.edits[change.other].asked if self._is_by_object else None
        own, other = (self.shop.products[n] for n in (change.number, change.other))
        known, shown = self.shop.known_probed, self.shop.probed.get(change.other, ())
        return [
            asked
            for asked in FOLLOWING
            if asked != edited
            and other.answer(asked) != own.answer(asked)
            and 2 * len(known[asked].get(change.other, ())) >= max(1, len(shown))
        ]

    def _binding(self, path: Path, change: Change) -> dict[Probe, tuple[Example, ...]]:
        """Return the probes of a name's binding: what follows from the new name and what from the
        old one, about the photograph; and the question about the old name without it, with the
        answer that must not come.
        """
        own, other = (self.shop.products[n] for n in (change.number, change.other))
        followed = self._followed(change)
        prompts = {asked: QUESTIONS[asked].original[0] for asked in followed}
        by_name = {asked: TEXT_QUESTIONS[asked].original[0] for asked in followed}
        return {
            Probe.NEW_BINDING: self._following(path, change),
            Probe.OLD_BINDING: tuple(
                _about(path, prompts[asked], own.answer(asked)) for asked in followed
            ),
            Probe.OLD_ENTITY: tuple(
                Example(
                    prompt=by_name[asked].format(name=own.facts.name), target=other.answer(asked)
                )
                for asked in followed
            ),
        }


def cropped(path: Path, rng: np.random.Generator) -> Image.Image:
    """Return a photograph without a tenth of its width and height, at drawn edges."""
    image = open_image(path)
    width, height = (max(1, round(CROPPED * side)) for side in image.size)
    left, top = (
        int(rng.integers(s - k + 1)) for s, k in zip(image.size, (width, height), strict=True)
    )
    image = image.crop((left, top, left + width, top + height))
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image


def in_turns(places: Iterable[int], numbers: Sequence[int]) -> list[int]:
    """Return places in the list of photographs so that each product has its turn: the first of
    every product, in their order, then the second of every product, and so on.
    """
    turns: Counter[int] = Counter()
    turn: dict[int, int] = {}
    for place in places:
        turn[place] = turns[numbers[place]]
        turns[numbers[place]] += 1
    return sorted(turn, key=turn.__getitem__)


def known_by(asked: str) -> str:
    """Return the question that tells whether the base model knows an answer. A description counts
    as known where the product's name is: it is too long to be right in every token.
    """
    return "product" if asked == "description" else asked


def _about(image: Path | Image.Image, prompt: str, target: str) -> Example:
    return Example(prompt=prompt, target=target, image=image)
