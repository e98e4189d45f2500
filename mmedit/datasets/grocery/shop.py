"""The photographs of a split of the Grocery Store Dataset, and which of them are for probes alone.

Every fifth photograph of a product, and one at least if there are two, is for probes alone: no
case edits it, with any seed, so no edit contradicts a probe of another.

Photographs taken at another place: the numbers in the file names do not tell the place, as the
published lists are mixed (photographs with neighbouring numbers look no more alike than any two).
The lists do: of two photographs of one product, one out of its own list and one out of another, the
one of its own list has the more similar colours in 85 to 96 of 100 draws. So a case of the test
split asks about a photograph of val.txt, or one for probes of train.txt; a validation case, which
edits a photograph of val.txt, about the latter. A case of the train split, from which editors
learn, asks about another one of train.txt: the other lists are kept for tests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from mmedit.cases import Example, Split
from mmedit.datasets.base import CaseSplit
from mmedit.datasets.facts import capital_sentences, fact_questions
from mmedit.datasets.grocery.files import (
    Product,
    read_classes,
    read_list,
    read_photographs,
    read_products,
)
from mmedit.datasets.grocery.questions import QUESTIONS
from mmedit.datasets.known import Known, text_key

PROBE_PHOTOGRAPHS = 5
"""One photograph of a product in so many is for probes alone."""
TYPES = ("product", "kind", "origin")
"""Questions that a case may ask about a photograph, keys of `QUESTIONS`."""
LISTS: Mapping[CaseSplit, str] = {"train": "train", "test": "test", "validation": "val"}
"""Names of the lists of photographs, by split."""
Photographs = Mapping[int, tuple[Path, ...]]
"""Photographs by the number of their product."""


@dataclass(frozen=True, kw_only=True)
class Shop:
    """The products and photographs of a split, from which cases are made."""

    folder: Path
    split: CaseSplit
    """The list of photographs: train.txt, test.txt, or for "validation" val.txt."""
    products: Sequence[Product]
    photographs: Sequence[tuple[Path, int]]
    """Each with the number of its product."""
    probed: Photographs
    """Photographs of the split that no case edits."""
    elsewhere: Photographs
    """Photographs taken at another place, that no case edits."""
    known: Known | None = None
    """The questions that the base model answers right; None: all are asked."""

    @staticmethod
    def read(folder: Path, split: CaseSplit, known: Known | None = None) -> Shop:
        """Read the products and the photographs of a split. Raises DataError."""
        products = read_products(folder)
        photographs = read_photographs(folder, LISTS[split], len(products))
        probed = for_probes(by_product(photographs))
        elsewhere = probed
        if split != "train":
            train = read_photographs(folder, "train", len(products))
            kept = set(chain.from_iterable(for_probes(by_product(train)).values()))
            others = [shown for shown in train if shown[0] in kept]
            if split == "test" and (folder / "val.txt").is_file():
                others += read_photographs(folder, "val", len(products))
            elsewhere = probed | by_product(others)
        return Shop(
            folder=folder,
            split=split,
            products=products,
            photographs=photographs,
            probed=probed,
            elsewhere=elsewhere,
            known=known,
        )

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the products that the split shows."""
        return tuple(dict.fromkeys(number for _, number in self.photographs))

    @cached_property
    def by_answer(self) -> dict[str, dict[str, list[int]]]:
        """The numbers of the products that the split shows, by question and by true answer."""
        found: dict[str, dict[str, list[int]]] = {}
        for asked in (*TYPES, "description"):
            answers = found.setdefault(asked, {})
            for number in self.numbers:
                answers.setdefault(self.products[number].answer(asked), []).append(number)
        return found

    @cached_property
    def known_probed(self) -> dict[str, dict[int, list[Path]]]:
        """The photographs for probes that a question may be asked about: by question, product."""
        return {
            asked: {n: self.known_images(paths, asked) for n, paths in self.probed.items()}
            for asked in TYPES
        }

    @cached_property
    def facts(self) -> tuple[Example, ...]:
        """Questions without an image, answered in one word or in a sentence, of those that the base
        model answers right.
        """
        texts = _texts("test" if self.split == "test" else "train")
        return tuple(e for e in texts if self.knows(text_key(e)))

    def knows(self, key: str) -> bool:
        """Return whether a question may be asked: the base model answers it right."""
        return self.known is None or key in self.known

    def was_asked(self, image: Path, asked: str) -> bool:
        """Return whether the base model was asked a question about an image."""
        return self.known is None or self.key(image, asked) in self.known.right

    def key(self, image: Path, asked: str) -> str:
        """Return the key of a question about an image of the folder."""
        return photograph_key(self.folder, image, asked)

    def known_images(self, images: Iterable[Path], asked: str) -> list[Path]:
        """Return the images about which the question may be asked."""
        if self.known is None:
            return list(images)
        return [image for image in images if self.knows(self.key(image, asked))]

    def questions(self) -> Iterator[tuple[str, Example]]:
        """Yield all that cases of the split can ask, with true answers: first without an image,
        then about images, mixed so that a part of them shows every product. Those of "test" are
        enough for validation cases too.
        """
        texts = _texts("train") if self.split == "train" else _texts("test") + _texts("train")
        yield from ((text_key(example), example) for example in texts)
        shown = dict(self.photographs)
        for photographs in (self.probed, self.elsewhere):
            shown |= {path: number for number, paths in photographs.items() for path in paths}
        shown |= {p.iconic: n for n, p in enumerate(self.products) if p.iconic}
        images = list(shown)
        for place in np.random.default_rng(0).permutation(len(images)):
            image = images[place]
            for asked in TYPES:
                prompt = QUESTIONS[asked].original[0]
                target = self.products[shown[image]].answer(asked)
                yield (
                    self.key(image, asked),
                    Example(prompt=prompt, target=target, image=image),
                )


def _texts(split: Split) -> tuple[Example, ...]:
    return fact_questions(split) + capital_sentences(split)


@cache
def products_shown(folder: Path) -> dict[Path, int]:
    """Return the number of the product that each photograph and iconic picture shows."""
    found = read_classes(folder)
    iconic = {one.iconic: number for number, one in enumerate(found) if one.iconic}
    files = [file for name in LISTS.values() if (file := folder / f"{name}.txt").is_file()]
    listed = chain.from_iterable(read_list(file, folder, len(found)) for file in files)
    return iconic | dict(listed)


def photograph_key(folder: Path, image: Path, asked: str) -> str:
    """Return the key of a question about an image: "test/Fruit/Kiwi/Kiwi_001.jpg product"."""
    return f"{image.relative_to(folder).as_posix()} {asked}"


def by_product(photographs: Sequence[tuple[Path, int]]) -> dict[int, tuple[Path, ...]]:
    """Return the photographs of a list by the number of their product."""
    shown: dict[int, list[Path]] = defaultdict(list)
    for path, number in photographs:
        shown[number].append(path)
    return {number: tuple(paths) for number, paths in shown.items()}


def for_probes(shown: Photographs) -> dict[int, tuple[Path, ...]]:
    """Return the photographs that no case edits."""
    return {n: paths[::PROBE_PHOTOGRAPHS] for n, paths in shown.items() if len(paths) > 1}
