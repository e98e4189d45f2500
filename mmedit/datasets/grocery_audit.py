"""What is in the Grocery Store Dataset's folder, beside what was published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from mmedit.datasets.audit import SHOWN, Report, corrupt_images
from mmedit.datasets.grocery import read_photographs, read_products
from mmedit.datasets.hashes import sha256

PUBLISHED_PHOTOGRAPHS, PUBLISHED_PRODUCTS = 5125, 81
"""Klasson et al. 2019: without the validation split, which the repository has as well."""
SPLITS = ("train", "val", "test")


def audit_grocery(root: Path, command: str, *, decode: bool, report: Report) -> str:
    """As Markdown. Raises DataError where lists or files are missing."""
    folder = root.expanduser()
    products = read_products(folder)
    photographs = {
        split: read_photographs(folder, split, products)
        for split in SPLITS
        if (folder / f"{split}.txt").is_file() or split != "val"
    }
    total = len(photographs["train"]) + len(photographs["test"])
    lines = [
        f"`{command}`",
        "",
        f"| | {' | '.join(photographs)} |",
        f"|---|{'--:|' * len(photographs)}",
        _row("photographs", photographs, lambda found: f"{len(found):,}"),
        _row("products", photographs, lambda found: f"{len({n for _, n in found})}"),
        _row("fewest of a product", photographs, lambda found: f"{min(_counts(found).values())}"),
        _row("most of a product", photographs, lambda found: f"{max(_counts(found).values())}"),
        "",
        f"- photographs in train and test: {total:,} (published: {PUBLISHED_PHOTOGRAPHS:,})",
        f"- products: {len(products)} (published: {PUBLISHED_PRODUCTS}); coarse classes: "
        f"{len({product.coarse for product in products})}",
        f"- products that share a name: {_again(p.name for p in products)}; a first sentence: "
        f"{_again(p.description for p in products if p.description)}",
        f"- {_shared(photographs)}",
    ]
    lines += [f"- {s}.txt: SHA-256 `{sha256(folder / f'{s}.txt')}`" for s in photographs]
    lines.append(f"- classes.csv: SHA-256 `{sha256(folder / 'classes.csv')}`")
    if decode:
        every = [path for found in photographs.values() for path, _ in found]
        icons = [product.iconic for product in products if product.iconic]
        faults = corrupt_images("grocery", [*every, *icons], report)
        shown = f", for instance {'; '.join(faults[:SHOWN])}" if faults else ""
        lines.append(f"- corrupt images: {len(faults)}{shown}")
    else:
        lines.append("- corrupt images: not opened")
    return "\n".join(lines) + "\n"


Found = list[tuple[Path, int]]


def _row(title: str, by_split: dict[str, Found], value: Callable[[Found], str]) -> str:
    return f"| {title} | {' | '.join(map(value, by_split.values()))} |"


def _counts(found: Found) -> Counter[int]:
    return Counter(number for _, number in found)


def _again(texts: Iterable[str]) -> int:
    return sum(number - 1 for number in Counter(texts).values())


def _shared(photographs: dict[str, Found]) -> str:
    """Photographs of the test split that a training case has as well, by content."""
    hashes = {s: Counter(sha256(path) for path, _ in found) for s, found in photographs.items()}
    both = hashes["train"].keys() & hashes["test"].keys()
    again = sum(n - 1 for n in sum(hashes.values(), Counter()).values())
    return f"photographs in train and in test: {len(both)}; that lie there more than once: {again}"
