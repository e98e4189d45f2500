"""Edit cases from the Grocery Store Dataset (Klasson et al. 2019, MIT): photographs of 81 products.

Request: a photograph, and a product that it does not show (`task="vqa"`), or the first sentence of
another product's description (`task="caption"`). Text generality: another wording; the test split's
wordings are in no training case. Image generality: another photograph of the same product, and its
iconic picture. Image locality: a photograph of another product of the same coarse class, if there
is one, and a photograph of a product of another class, with true answers. Text locality: as in
easyvqa. The splits are the dataset's own; a case depends on the seed and its photograph alone.

Every fifth photograph of a product, and one at least if there are two, is for image generality and
image locality alone. No case edits it, with any seed, so no edit contradicts a probe of another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from mmedit.cases import Cases, EditCase, Example, Probe, Split
from mmedit.datasets.base import DatasetSettings, one_of
from mmedit.datasets.facts import unrelated_fact
from mmedit.datasets.grocery.files import FETCH, Product, folder_of, read_photographs, read_products
from mmedit.errors import DataError
from mmedit.progress import Progress

Task = Literal["vqa", "caption"]

PROBE_PHOTOGRAPHS = 5
"""One photograph of a product in so many is for probes alone."""
ASKED: dict[str, str] = {
    "vqa": "What product is this?",
    "caption": "Describe the product in the picture.",
}
WORDINGS: dict[str, dict[Split, tuple[str, ...]]] = {
    "vqa": {
        "train": ("Which product is shown?", "Name the product in the picture."),
        "test": ("Can you tell which grocery product this is?", "What is the product called?"),
    },
    "caption": {
        "train": ("Tell something about this product.", "Give a description of the product."),
        "test": ("How would you describe what is shown here?", "What can be said of this product?"),
    },
}
"""Wordings of the rephrase; those of the test split are in no training case."""


class Grocery(DatasetSettings):
    """The dataset's settings: its folder, and whether products are named or described."""

    root: Path | None = None
    """The dataset's folder, with classes.csv, train.txt and test.txt."""
    task: Annotated[Task, one_of("task of grocery", ASKED)] = "vqa"

    def read(self, split: Split, *, limit: int | None, seed: int, progress: Progress) -> Cases:
        """Make a case of every photograph of a split that is not for probes (2,081 for train, 1,958
        for test), or of the first `limit` in a seeded order.

        Raises DataError, with file and row, if files are missing.
        """
        shop = Shop.read(folder_of(self.root), split, self.task)
        mixed = np.random.default_rng([seed, 0]).permutation(len(shop.photographs))
        order = [place for place in mixed if shop.photographs[place][0] not in shop.for_probes]
        order = order[:limit]
        cases = []
        for place in order:
            rng = np.random.default_rng([seed, 1, int(place)])
            path, number = shop.photographs[place]
            cases.append(shop.case(path, number, rng))
            progress("reading cases", len(cases), len(order), "")
        return Cases(tuple(cases))


@dataclass(frozen=True, kw_only=True)
class Shop:
    """The products and photographs of a split, from which cases are made."""

    split: Split
    task: Task
    products: Sequence[Product]
    photographs: Sequence[tuple[Path, int]]
    """Each with the number of its product."""
    probed: Mapping[int, Sequence[Path]]
    """Photographs that no case edits, by the number of their product."""

    @staticmethod
    def read(folder: Path, split: Split, task: Task) -> Shop:
        """Read the products and the photographs of a split. Raises DataError."""
        products = read_products(folder)
        if task == "caption" and not all(product.description for product in products):
            raise DataError(f"{folder} has no descriptions, as the copy from PyPI. {FETCH}")
        photographs = read_photographs(folder, split, products)
        shown: dict[int, list[Path]] = defaultdict(list)
        for path, number in photographs:
            shown[number].append(path)
        probed = {
            number: tuple(paths[::PROBE_PHOTOGRAPHS])
            for number, paths in shown.items()
            if len(paths) > 1
        }
        return Shop(
            split=split, task=task, products=products, photographs=photographs, probed=probed
        )

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the products that the split shows."""
        return tuple(dict.fromkeys(number for _, number in self.photographs))

    @cached_property
    def for_probes(self) -> frozenset[Path]:
        """All photographs that no case edits."""
        return frozenset(path for paths in self.probed.values() for path in paths)

    def case(self, path: Path, number: int, rng: np.random.Generator) -> EditCase:
        """Return the case of a photograph of product `number`."""
        asked, wordings = ASKED[self.task], WORDINGS[self.task][self.split]
        others = [n for n in self.numbers if n != number]
        target = self.products[others[int(rng.integers(len(others)))]].answer(self.task)

        def about(image: Path, prompt: str = asked) -> Example:
            return Example(prompt=prompt, target=target, image=image)

        same = self.probed.get(number, ())
        iconic = self.products[number].iconic
        again = [about(same[int(rng.integers(len(same)))])] if same else []
        return EditCase(
            id=f"grocery-{self.task}-{self.split}-{path.stem}",
            request=about(path),
            probes={
                Probe.TEXT_GENERALITY: (about(path, wordings[int(rng.integers(len(wordings)))]),),
                Probe.IMAGE_GENERALITY: (*again, *([about(iconic)] if iconic else [])),
                Probe.TEXT_LOCALITY: (unrelated_fact(rng, self.split),),
                Probe.IMAGE_LOCALITY: self._other_products(number, target, rng),
            },
        )

    def _other_products(
        self, number: int, target: str, rng: np.random.Generator
    ) -> tuple[Example, ...]:
        """Return a similar product, if there is one, and another; neither is the edit's target."""
        products, coarse = self.products, self.products[number].coarse
        possible = [
            n for n in self.probed if n != number and products[n].answer(self.task) != target
        ]
        near = [n for n in possible if products[n].coarse == coarse]
        far = [n for n in possible if products[n].coarse != coarse]
        examples = []
        for kind in (near, far):
            if not kind:
                continue
            other = kind[int(rng.integers(len(kind)))]
            image = self.probed[other][int(rng.integers(len(self.probed[other])))]
            answer = products[other].answer(self.task)
            examples.append(Example(prompt=ASKED[self.task], target=answer, image=image))
        return tuple(examples)
